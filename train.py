"""Train a classifier: `python train.py model=resnet18 attack.p=2`."""

from wdro_train.cli.train import main

if __name__ == "__main__":
    main()
