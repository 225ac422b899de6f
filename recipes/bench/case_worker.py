"""The child side of `WorkerProcess`: times cases, or measures their memory, when asked."""

import json
import os
import sys
from importlib import import_module
from typing import Any

import torch

from ..interleaved_timing import time_interleaved
from ..steady_memory import keep_freed_memory
from .case_measurement import clock_of, samples_of, synchronous, timed_cases
from .ddl_cases import Action, Case, DdlBenchSettings
from .peak_memory import peak_in_child


class CaseWorker:
    """Holds the cases of one suite, and the calls to time once they are needed."""

    settings: DdlBenchSettings

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}
        self._actions: dict[str, Action] = {}

    def load(self, suite: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Build the cases of a suite; returns the names of those that are timed."""
        module = import_module(f"{__package__}.{suite}")
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
        }
        self.settings = type(module.DEFAULT)(**values)
        self.cases = module.cases(self.settings)
        return {"cases": list(timed_cases(self.cases))}

    def memory(self, case: str) -> dict[str, Any]:
        """Return the peak bytes of one case; it runs in a fork."""
        # Optimizers import it; here it is part of what every fork starts with.
        import_module("torch._dynamo")
        return {"bytes": peak_in_child(self.cases[case], self.settings.threads)}

    def time(self, names: list[str], rounds: int, warmup: int) -> dict[str, Any]:
        """Return name -> milliseconds of so many rounds in turns."""
        torch.set_num_threads(self.settings.threads or torch.get_num_threads())
        if self.settings.keeps_freed_memory:
            keep_freed_memory()
        for name in names:
            if name not in self._actions:
                self._actions[name] = synchronous(self.cases[name].prepare(), self.settings)
        timings = time_interleaved({name: self._actions[name] for name in names}, rounds, warmup)
        clock = clock_of(self.settings)
        return {"samples_ms": {name: samples_of(t, clock) for name, t in timings.items()}}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request says; an error is an answer too."""
        actions = {"load": self.load, "memory": self.memory, "time": self.time}
        try:
            action: Any = actions[request.pop("do")]
            result: dict[str, Any] = action(**request)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        return result


def main() -> None:
    """Answer requests until the other side hangs up."""
    # Compilers and libraries print; only answers may reach the other side.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = CaseWorker()
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()
