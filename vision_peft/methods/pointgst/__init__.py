"""PointGST: adapters that filter a cloud's tokens in the spectrum of the graph of its own patches."""

from vision_peft.methods.pointgst.config import PointGstConfig
from vision_peft.methods.pointgst.released import load_pointgst
from vision_peft.methods.pointgst.spectra import bound_spectra, cloud_spectra

__all__ = ["PointGstConfig", "bound_spectra", "cloud_spectra", "load_pointgst"]
