"""How fast a placed model will be: decode and prefill from bytes and operations, always with a band.

`Roofline(machine)` knows the rates; a plugin fills one `LayerWork` per block and says with a `Place`
where it runs.
"""

from __future__ import annotations

from autofit.speed.roofline import Roofline
from autofit.speed.work import Draft, LayerWork, Place, Read, Step, n_kernels, quant_class, reads

__all__ = ["Draft", "LayerWork", "Place", "Read", "Roofline", "Step", "n_kernels", "quant_class", "reads"]
