"""Child services: programs that run as long as we do, each under a guard that outlives us."""

from .group import HELD_BY_PARENT, Services, held_by_parent
from .policies import Always, HealthCheck, Never, OnFailure, Stop
from .readiness import File, Http, Log, Notify, Probe, Tcp
from .service import Service, State

__all__ = [
    "HELD_BY_PARENT",
    "Always",
    "File",
    "HealthCheck",
    "Http",
    "Log",
    "Never",
    "Notify",
    "OnFailure",
    "Probe",
    "Service",
    "Services",
    "State",
    "Stop",
    "Tcp",
    "held_by_parent",
]
