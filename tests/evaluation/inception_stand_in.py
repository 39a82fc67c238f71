"""A small frozen graph with the names, the signature, the old operations and the batch size of 1 of Inception 2015."""

import numpy as np
import tensorflow as tf

NUM_FEATURES = 2048


def features_of(graph, pixels):
    """What the graph as it is computes of `[height, width, 3]` from 0 to 255: old operations, one image."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        (pool,) = tf.graph_util.import_graph_def(graph, return_elements=["pool_3:0"], name="")
        return session.run(pool, {"ExpandDims:0": pixels[np.newaxis]})[0, 0, 0]


def stand_in(num_features=NUM_FEATURES):
    random = np.random.RandomState(0)
    with tf.Graph().as_default() as graph:
        decoded = tf.raw_ops.DecodeJpeg(contents=tf.constant(b"", name="DecodeJpeg/contents"), name="DecodeJpeg")
        image = tf.raw_ops.ExpandDims(input=tf.cast(decoded, tf.float32), axis=0, name="ExpandDims")
        state = tf.raw_ops.ResizeBilinear(images=image, size=[299, 299], name="ResizeBilinear")
        state = tf.raw_ops.Mul(x=tf.raw_ops.Sub(x=state, y=128.0, name="Sub"), y=1.0 / 128.0, name="Mul")
        kernel = random.normal(size=(1, 1, 3, num_features), scale=0.4).astype(np.float32)
        state = tf.raw_ops.Conv2D(input=state, filter=kernel, strides=[1, 42, 42, 1], padding="VALID")
        # The second has a scale, the first has none.
        for ending in ("", "_2"):
            for part in ("mean", "variance", "beta", "gamma"):
                tf.constant(random.uniform(0.5, 2.0, num_features).astype(np.float32), name=part + ending)
            state = tf.identity(state, name=f"batchnorm{ending}")
            with tf.control_dependencies([tf.debugging.check_numerics(state, "not finite")]):
                state = tf.nn.relu(tf.identity(state)) if not ending else tf.identity(state)
        pool = tf.raw_ops.AvgPool(value=state, ksize=[1, 8, 8, 1], strides=[1, 1, 1, 1], padding="VALID", name="pool_3")
        tf.raw_ops.Reshape(tensor=pool, shape=[1, num_features], name="pool_3/_reshape")
    definition = graph.as_graph_def(add_shapes=True)
    definition.versions.producer = 8
    for node in definition.node:
        if node.name.startswith("batchnorm"):
            # TensorFlow no longer lets one be made, only be read.
            ending = node.name.removeprefix("batchnorm")
            node.op = "BatchNormWithGlobalNormalization"
            node.input.extend(name + ending for name in ("mean", "variance", "beta", "gamma"))
            node.attr["variance_epsilon"].f = 1e-3
            node.attr["scale_after_normalization"].b = bool(ending)
        elif node.name == "Mul":
            # A graph says of what size its tensors are: of one image.
            node.attr["_output_shapes"].list.shape.add().CopyFrom(tf.TensorShape([1, 299, 299, 3]).as_proto())
    return definition
