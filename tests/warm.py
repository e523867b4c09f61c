"""Importing this does what every process that trains does once, for seconds: others are forked from one that has."""

import torch

import phonedata.cli  # noqa: F401
import phonetrain.cli.main
import phonetrain.reports.report
import phonetrain.training.fit  # noqa: F401

torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first one imports for a second
