"""The ways to the machine where a scheduler is: this one, or one reached over OpenSSH."""

from orchestrator.transports.base import (
    Address,
    Answer,
    Fault,
    FileChunk,
    FileContent,
    Transfer,
    TransferOptions,
    Transport,
    scrubbed_environment,
)
from orchestrator.transports.local import LocalTransport

__all__ = [
    "Address",
    "Answer",
    "Fault",
    "FileChunk",
    "FileContent",
    "LocalTransport",
    "Transfer",
    "TransferOptions",
    "Transport",
    "scrubbed_environment",
]
