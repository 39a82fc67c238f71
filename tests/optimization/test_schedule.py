import math

import keras
import pytest

from nvae_tf.optimization import LoweredRate, WarmupCosine


def rates_by_loop(rate, minimum, warmup_epochs, epochs, steps_per_epoch):
    """A run of whole epochs, as somebody training would set the rate."""
    rates, current = [], rate
    warmup_steps = warmup_epochs * steps_per_epoch
    last_of_warmup = None
    for epoch in range(epochs):
        for _ in range(steps_per_epoch):
            step = len(rates)
            if step < warmup_steps:
                current = last_of_warmup = rate * step / warmup_steps
            elif last_of_warmup is None:
                last_of_warmup = rate
            rates.append(current)
        after = epoch + 1 - warmup_epochs  # epochs of the cosine that the next one has behind it
        if after >= 1:
            part = after / (epochs - warmup_epochs - 1)
            current = minimum + (last_of_warmup - minimum) * (1.0 + math.cos(math.pi * part)) / 2.0
    return rates


@pytest.mark.parametrize(
    ("warmup_epochs", "epochs", "steps_per_epoch"), [(5, 20, 7), (1, 4, 3), (2, 12, 1), (3, 5, 10), (0, 3, 4)]
)
def test_every_step_of_a_run(warmup_epochs, epochs, steps_per_epoch):
    schedule = WarmupCosine(1e-2, 1e-4, warmup_epochs * steps_per_epoch, steps_per_epoch, epochs * steps_per_epoch)
    expected = rates_by_loop(1e-2, 1e-4, warmup_epochs, epochs, steps_per_epoch)
    found = [float(schedule(step)) for step in range(epochs * steps_per_epoch)]
    assert found == pytest.approx(expected, rel=1e-4)
    assert float(schedule(epochs * steps_per_epoch + 1000)) == pytest.approx(1e-4)  # longer than planned


@pytest.mark.parametrize("total_steps", [3, 10, 12, 14])
def test_runs_too_short_for_the_cosine_stay_in_range(total_steps):
    schedule = WarmupCosine(1e-2, 1e-4, warmup_steps=10, steps_per_epoch=2, total_steps=total_steps)
    rates = [float(schedule(step)) for step in range(total_steps + 4)]
    assert all(math.isfinite(rate) and 0.0 <= rate <= 1e-2 for rate in rates)


def test_rebuilt_from_its_serialized_form():
    schedule = WarmupCosine(1e-2, 1e-4, warmup_steps=5, steps_per_epoch=3, total_steps=40)
    for factor in (1.0, 0.5):
        lowered = LoweredRate(schedule, factor)
        rebuilt = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(lowered))
        expected = [factor * float(schedule(step)) for step in range(40)]
        assert [float(rebuilt(step)) for step in range(40)] == expected
