"""One of the processes that train several recipes one after the other; started with a JSON list on its command line."""

from __future__ import annotations

import json
import sys

import torch

from selfdistill.parallel import joined
from selfdistill.training.recipe import load_recipe
from selfdistill.training.run import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined(120.0, "cpu"):
        for path, overrides, how in json.loads(sys.argv[1]):
            train(load_recipe(path, overrides), **how)
