"""Judge a checkpoint: `python evaluate.py [ckpt_path=a.ckpt,b.ckpt]`."""

from wdro_train.cli.evaluate import main

if __name__ == "__main__":
    main()
