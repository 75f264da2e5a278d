"""The artefact: one folder that scores raw rows with torch alone, proved before it is published."""

from recsys.bundle.export import export, export_verified
from recsys.bundle.graph import ServingGraph
from recsys.bundle.verify import VerifyError, VerifyReport, verify

__all__ = [
    "ServingGraph",
    "VerifyError",
    "VerifyReport",
    "export",
    "export_verified",
    "verify",
]
