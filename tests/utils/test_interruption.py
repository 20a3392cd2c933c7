"""What is assumed about a private class of Lightning, which watches over the ranks it has started."""

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from wdro_train.utils import interruption


def test_lightnings_observer_has_the_name_and_the_children_that_are_assumed():
    children = []
    observer = _ChildProcessObserver(main_pid=0, child_processes=children)
    assert type(observer).__name__ == interruption._OBSERVER
    assert observer._child_processes is children
