"""Compile what the tile operations launch for an H100 / H200 (sm_90), which needs no GPU; print a report as JSON.

A script of its own: the kernels must not be interpreted, and Triton's cache belongs into the caller's TRITON_CACHE_DIR.
The operations run as they are, but on CPU tensors and with a compilation in the place of each launch.
"""

import json
import re
import subprocess
import sys
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget

from selfdistill.models.head import Projection
from selfdistill.objectives import triton_tiles
from selfdistill.objectives.settings import DivergenceSettings

VOCABULARY = 151_936
REPORT = []


class Hopper:
    """As much of a GPU's driver as a compilation asks for."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


class Compiled:
    """A kernel that is compiled where it would be launched."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def compile_only(*arguments, **options):
            made = self.kernel.warmup(*arguments, grid=grid, **options)
            wide = re.findall(r"ld\.global\S*\.v4\.b32", made.asm["ptx"])
            sizes = {**resources(made.asm["cubin"]), "SHARED": made.metadata.shared, "wide_loads": len(wide)}
            REPORT.append({"kernel": self.kernel.__name__, **options, **sizes})

        return compile_only


def resources(binary):
    """Return registers per thread, and bytes per thread in a stack frame, which is where spilled registers go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(re.search(rf"{name}:(\d+)", said)[1]) for name in ("REG", "STACK", "LOCAL")}


def launch_everything():
    """Go through all that a run can ask for, on bfloat16 weights."""
    student, teacher = torch.zeros(2, 1, VOCABULARY)
    row = torch.zeros(1)
    tiles = triton_tiles.TritonTiles(0.7, operand_dtype=torch.bfloat16)
    tiles.normalise(student)
    tiles.entropy(student, row)
    tiles.gradient(student, row, row)
    for name in ("forward_kl", "reverse_kl", "jsd"):
        for clip in (None, 0.05):
            settings = DivergenceSettings(divergence=name, entry_clip=clip)
            tiles.compare(student, teacher, row, row, settings)
            theirs = {"teacher": teacher, "teacher_normaliser": row, "coefficient_scale": row}
            tiles.gradient(student, row, row, **theirs, settings=settings)
    weight, bias = torch.zeros(VOCABULARY, 1, dtype=torch.bfloat16), torch.zeros(VOCABULARY, dtype=torch.bfloat16)
    for head in (Projection(weight, bias), Projection(weight, bias, softcap=30.0)):
        tiles.project(head, torch.zeros(1, 1, dtype=torch.bfloat16), student)


if __name__ == "__main__":
    triton.runtime.driver.set_active(Hopper())
    launch = triton_tiles._launch
    triton_tiles._launch = lambda kernel, *rest, **constants: launch(Compiled(kernel), *rest, **constants)
    launch_everything()
    json.dump(REPORT, sys.stdout)
