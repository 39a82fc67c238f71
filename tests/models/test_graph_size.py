"""The promise of stacked layers: more groups add hardly any variables and few nodes to the graph."""

import tensorflow as tf

from nvae_tf.layers import ForwardPass


def size_of_training_graph(model, images):
    """Number of nodes of the loss and its gradient, each function of the graph counted once."""

    def gradients(images):
        noise = [tf.zeros((4, *shape)) for shape in model.plan.latent_shapes()]
        forward = ForwardPass(training=True)
        with tf.GradientTape() as tape:
            _, loss, _ = model.training_loss(images, noise, tf.constant(0), forward)
        return tape.gradient(loss.loss, model.trainable_weights), [value for _, value in forward.updates]

    traced = tf.function(gradients, autograph=False).get_concrete_function(tf.TensorSpec(images.shape))
    definition = traced.graph.as_graph_def()
    return len(definition.node) + sum(len(function.node_def) for function in definition.library.function)


def test_twice_the_groups(tiny, images):
    models = [tiny.model(num_latent_scales=1, num_groups_per_scale=groups) for groups in (3, 6)]
    # One variable a kind of layer and scale, however many groups there are.
    assert len(models[0].weights) == len(models[1].weights)
    few, many = (size_of_training_graph(model, images) for model in models)
    # The rest of the growth is some dozens of nodes a group: calls of functions that are there once.
    assert many < 1.35 * few
    assert (many - few) / 3 < 400
