from calibration.formats import FORMATS, NumberFormat, block_scales, channel_scales, dequantize, quantize  # noqa
