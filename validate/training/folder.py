"""The folder of a model in training: what an interrupted run left, and the finished model."""

from __future__ import annotations

import os
import pickle
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ratedist.errors import InputError, RatedistError

if TYPE_CHECKING:
    from ratedist.validate.training.train import TrainingState

__all__ = ["RECORD", "UNFINISHED", "TrainingFolder"]

UNFINISHED = "training.partial.pt"
"""State of an interrupted run; gone when the model is finished."""

RECORD = "training.json"
"""The record of a finished model, and what marks a folder as one of ours."""

_LAST = "config.json"
"""Without it no folder passes for a model."""


class TrainingFolder:
    """A folder that this training owns.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def claim(cls, path: Path, *, force: bool = False) -> TrainingFolder:
        """Take a new or empty folder, or one with an unfinished training.

        Raises InputError for a file, for a finished model (unless ``force``, which deletes it and what was
        unfinished), and always for a folder that holds anything but a training.
        """
        if path.exists() and not path.is_dir():
            raise InputError("out", str(path), "is a file; name a folder")
        held = {item.name for item in path.iterdir()} if path.is_dir() else set()
        ours = RECORD in held or UNFINISHED in held
        if held and not ours:
            raise InputError("out", str(path), "holds something else; name a new folder")
        if RECORD in held and not force:
            raise InputError(
                "out", str(path), "holds a finished model; name another folder, or pass --force to train anew"
            )
        if force and ours:
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    def resume(self, state: TrainingState, settings: Mapping[str, Any]) -> None:
        """Bring ``state`` to where the last run stopped; nothing to do where there was none.

        Raises InputError where that run had other settings, RatedistError where its file is damaged.
        """
        file = self.path / UNFINISHED
        if not file.exists():
            return
        try:
            data = torch.load(file, weights_only=True)
            before = data["settings"]
            changes = [name for name in settings if before.get(name) != settings[name]]
            if not changes:
                state.model.load_state_dict(data["model"])
                state.optimizer.load_state_dict(data["optimizer"])
                state.step, state.rows, state.since = data["step"], data["rows"], data["since"]
                state.seconds = data["seconds"]
        # Damaged files surface as whatever the reader stumbles over.
        except (OSError, EOFError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise RatedistError(
                f"{file} cannot be read ({type(error).__name__}); pass --force to begin again"
            ) from error
        if changes:
            told = ", ".join(f"{name}: {before.get(name)} → {settings[name]}" for name in changes)
            raise InputError(
                "out",
                str(self.path),
                f"holds an unfinished training with other settings ({told}); go on with those, name another "
                "folder, or pass --force to begin again",
            )

    def save(self, state: TrainingState, settings: Mapping[str, Any]) -> None:
        """Keep the state, whole or not at all; raises RatedistError where it cannot be written."""
        data = {
            "settings": dict(settings),
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "step": state.step,
            "rows": state.rows,
            "since": state.since,
            "seconds": state.seconds,
        }
        temporary = self.path / f".{UNFINISHED}.{uuid.uuid4().hex}"
        try:
            torch.save(data, temporary)
            os.replace(temporary, self.path / UNFINISHED)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise RatedistError(f"{self.path} cannot be written ({error}); make room and go on") from error

    def finish(self, finished: Path) -> None:
        """Move the files of a finished model here, the configuration last, and drop what was unfinished."""
        for file in sorted(finished.iterdir(), key=lambda file: file.name == _LAST):
            os.replace(file, self.path / file.name)
        finished.rmdir()
        (self.path / UNFINISHED).unlink(missing_ok=True)
