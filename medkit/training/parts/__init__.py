"""Building blocks of trainings that train configs name: samples, losses, augmentation, handlers, GANs."""
