"""MNIST, dynamically binarized, as published (Vahdat & Kautz 2020, table 6).

    nvae-train --config=mnist --workdir=runs/mnist
    nvae-evaluate --workdir=runs/mnist --importance_samples=1000

Published run: 2 V100 GPUs, 21 hours, 200 images a GPU (400 a step), 33,363,134 parameters.
Score to see: 78.01 nats on the test images (importance-weighted bound with 1,000 samples; table 1 of the
paper, NVAE without flows).
One GPU with this config makes steps of 200 images, half of what was published.
Data: through TensorFlow Datasets (TFDS), at the first run, 12 MB; from LeCun, Cortes & Burges,
http://yann.lecun.com/exdb/mnist/. Without TFDS --config.data.source=idx --config.data.path=FOLDER reads the files
train-images-idx3-ubyte and t10k-images-idx3-ubyte, packed (.gz) or not.
"""

from nvae_tf.presets import config_for_data


def get_config():
    config = config_for_data("mnist")
    config.model.update(num_latent_scales=2, num_groups_per_scale=10, adaptive_groups=True)
    config.model.update(num_channels_encoder=32, num_channels_decoder=32)
    config.model.update(num_preprocess_blocks=2, num_preprocess_cells=3)
    config.model.update(num_postprocess_blocks=2, num_postprocess_cells=3)
    config.train.update(batch_size=200, epochs=400)
    return config.lock()
