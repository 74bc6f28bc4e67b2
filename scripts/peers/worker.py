"""Take steps of a peer on request, as a separate process: python -m peers.worker NAME.

Requests and replies are lines of JSON. The first request is ``{"setting": ..., "device": ..., "dtype": ..., "threads":
...}``; its reply names the steps and the peer. Every other is the name of a step; its reply has the seconds, the loss
or solution, and the norm of the gradient.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from importlib.metadata import version

import torch

from .problem import BRIEF, Problem, Setting, Step, timed


def take(step: Step, device: torch.device) -> dict:
    """Take a step and return its seconds, value and gradient."""
    moves = any(True for _ in step.network.parameters())
    seconds, value = timed(step.take, device, 0.0 if moves else BRIEF)
    return {"seconds": seconds, "value": value.tolist(), "gradient": step.gradient()}


def main() -> None:
    """Answer requests until there are no more."""
    name = sys.argv[1]
    # Output of the libraries goes to stderr, so that stdout holds only replies.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    steps, device = {}, torch.device("cpu")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if isinstance(request, str):
                reply = take(steps[request], device)
            else:
                torch.set_num_threads(request["threads"])
                device = torch.device(request["device"])
                problem = Problem(Setting(**request["setting"]), device, getattr(torch, request["dtype"]))
                module = import_module(f"peers.{name.replace('-', '_')}")
                steps = module.steps(problem)
                reply = {"steps": list(steps), "title": getattr(module, "TITLE", None) or f"{name} {version(name)}"}
        except Exception as error:  # a peer may fail in any way; the table shows the error
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
