"""PointGST: adapters that filter a cloud's tokens in the spectrum of the graph of its own patches."""

from vision_peft.methods.pointgst.adapter import Pcsa
from vision_peft.methods.pointgst.config import PointGstConfig
from vision_peft.methods.pointgst.released import load_pointgst
from vision_peft.methods.pointgst.spectra import bound_spectra, cloud_spectra
from vision_peft.methods.pointgst.view import CloudSpectrum, CloudView, cloud_spectrum, view_cloud

__all__ = [
    "CloudSpectrum",
    "CloudView",
    "Pcsa",
    "PointGstConfig",
    "bound_spectra",
    "cloud_spectra",
    "cloud_spectrum",
    "load_pointgst",
    "view_cloud",
]
