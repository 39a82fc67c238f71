"""Fashion-MNIST: gray images of clothes, 28x28 with 8 bits, with MNIST's model.

    nvae-train --config=fashion_mnist --workdir=runs/fashion_mnist --config.data.path=FOLDER
    nvae-evaluate --workdir=runs/fashion_mnist --importance_samples=100

Not one of the paper's sets: no published score. Hardware: this model took 2 V100 GPUs and 21 hours for MNIST, 200
images a GPU (400 a step); here it has a mixture of logistics. Nobody has trained it to the end.
Data: FOLDER has the four files train-images-idx3-ubyte.gz and so on, 31 MB, of data/fashion in
https://github.com/zalandoresearch/fashion-mnist. Debian's package dataset-fashion-mnist puts them into
/usr/share/datasets/fashion-mnist.
"""

from nvae_tf.presets import config_like


def get_config():
    return config_like("mnist", "fashion_mnist").lock()
