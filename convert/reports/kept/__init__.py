"""What torch's autograd keeps of a decoder's forward pass for the backward one, piece by piece.

Each function counts what the function of the same piece in `runtime.layers` and `runtime.scans` multiplies, divides and
norms: what goes into each product, norm and activation.  Under 16-bit autocast products take and give 16 bits, and
every matrix has a copy; norms, scans and the residual stay float32.
"""

from llmconv.convert.reports.kept.blocks import Kept

__all__ = ["Kept"]
