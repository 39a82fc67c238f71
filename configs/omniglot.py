"""OMNIGLOT, dynamically binarized: handwritten characters of 28x28 (Burda et al. 2016), with MNIST's model.

    nvae-train --config=omniglot --workdir=runs/omniglot --config.data.path=FOLDER
    nvae-evaluate --workdir=runs/omniglot --importance_samples=1000

Not one of the paper's sets: no published score. Hardware: this model took 2 V100 GPUs and 21 hours for MNIST, 200
images a GPU (400 a step), with 2.5 times as many images. Nobody has trained it to the end.
Data: FOLDER has the file chardata.mat, which is not downloaded for you:
https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat. The repository of Burda, Grosse &
Salakhutdinov (2016) names no license. The drawings are from https://github.com/brendenlake/omniglot.
"""

from nvae_tf.presets import config_like


def get_config():
    return config_like("mnist", "omniglot").lock()
