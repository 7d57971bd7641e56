"""The errors that maskfer raises on purpose.

MaskferError            anything a user can mend; its text is one line that names the remedy
├── DependencyError     a library, an extra or a system package is missing
├── InputError          a file, folder, picture or option that cannot be used
│   └── ModelError      a model file that does not keep the contract
├── OutputError         something cannot be written (exists already, disk full, no permission)
└── CameraError         a camera or stream that cannot be opened or has ended unexpectedly
"""

from __future__ import annotations


class MaskferError(Exception):
    """Base of all errors meant for the user: one line, with the remedy."""


class DependencyError(MaskferError):
    """A needed library cannot be imported."""


class InputError(MaskferError):
    """What was given cannot be used."""


class ModelError(InputError):
    """A model file does not keep the contract."""


class OutputError(MaskferError):
    """A result cannot be written."""


class CameraError(MaskferError):
    """A source of frames cannot be opened or read."""
