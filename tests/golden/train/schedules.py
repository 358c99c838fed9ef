"""Writes schedules.json: learning rate factors of the schedulers of PyTorch and transformers, step by step.

    pip install torch transformers
    python schedules.py

A scheduler of n training steps reaches its floor at the step after the last one; Vela's reaches it at the last. So the
factors of a run of n steps are those of a scheduler of n - 1. With a floor, get_wsd_schedule warms up from the floor and
not from 0: its cases have a floor or a warmup, not both.
"""

import json
import pathlib

import torch
import transformers
from transformers import optimization

STEPS = 41


def factors(make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def cosine(warmup, floor):
    return {"kind": "cosine", "warmup_steps": warmup, "floor": floor}, lambda optimizer: (
        optimization.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, STEPS - 1, min_lr_rate=floor))


def linear(warmup):
    return {"kind": "linear", "warmup_steps": warmup}, lambda optimizer: (
        optimization.get_linear_schedule_with_warmup(optimizer, warmup, STEPS - 1))


def constant(warmup):
    return {"kind": "constant", "warmup_steps": warmup}, lambda optimizer: (
        optimization.get_constant_schedule_with_warmup(optimizer, warmup))


def wsd(warmup, decay, shape, floor):
    schedule = {"kind": "wsd", "warmup_steps": warmup, "decay_steps": decay, "decay_shape": shape, "floor": floor}
    return schedule, lambda optimizer: optimization.get_wsd_schedule(
        optimizer, warmup, decay, num_training_steps=STEPS - 1, decay_type=shape, min_lr_ratio=floor)


def torch_linear(floor):
    """A straight line to a floor, which transformers does not have, by PyTorch itself."""
    return {"kind": "linear", "floor": floor}, lambda optimizer: (
        torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, floor, STEPS - 1))


def torch_cosine(floor):
    return {"kind": "cosine", "floor": floor}, lambda optimizer: (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 1, eta_min=floor))


def main():
    chosen = [cosine(0, 0.0), cosine(5, 0.1), torch_cosine(0.1), linear(0), linear(7), torch_linear(0.2), constant(0),
              constant(6), wsd(4, 12, "cosine", 0.0), wsd(4, 12, "linear", 0.0), wsd(0, 32, "linear", 0.1),
              wsd(0, 20, "1-sqrt", 0.1)]
    cases = [{"schedule": schedule, "factors": factors(make)} for schedule, make in chosen]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    path = pathlib.Path(__file__).resolve().parent / "schedules.json"
    path.write_text(json.dumps({"versions": versions, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
