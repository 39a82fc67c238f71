"""Stacked MNIST: three digits at random as the red, green and blue of one image, with MNIST's model.

    nvae-train --config=stacked_mnist --workdir=runs/stacked_mnist
    nvae-evaluate --workdir=runs/stacked_mnist --importance_samples=100

Not one of the paper's sets: no published score. Hardware: this model took 2 V100 GPUs and 21 hours for MNIST, 200
images a GPU (400 a step); here it has three channels of 8 bits and a mixture of logistics. Nobody has trained it to
the end.
Data: MNIST, with the same flags as the preset mnist. Every digit stands once in each channel, so 60,000 images are for
training and 10,000 for testing; data.split_seed decides which stand together.
"""

from nvae_tf.presets import config_like


def get_config():
    return config_like("mnist", "stacked_mnist").lock()
