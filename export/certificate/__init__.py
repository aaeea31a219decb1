"""The parity certificate: what the PyTorch reference computes in fp32, and how far an export may be from it.

Every module is probed at every corner of every profile, and whole runs are recorded with every step's x. Budgets come
from the reference itself: an fp16 graph may be twice as far from fp32 as rounding every tensor to fp16 takes the
reference.
"""

from saishiki.export.certificate.record import Expectation, record_reference

__all__ = ["Expectation", "record_reference"]
