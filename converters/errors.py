"""What can go wrong in a conversion.

ConversionError             the message says what failed and what to do
|- SourceMissing            the weights or their package are not there
|- SourceRefused            they are there, but broken, unsafe or not for this task
|- ExportFailed             the framework's exporter gave up
|- ProofFailed              the converted model does not give the original's answers
|- EngineUnavailable        no TensorRT here: the GPU or the package is missing
`- EngineFailed             TensorRT gave up
"""


class ConversionError(RuntimeError):
    """The base of the tree above."""


class SourceMissing(ConversionError):
    pass


class SourceRefused(ConversionError):
    pass


class ExportFailed(ConversionError):
    pass


class ProofFailed(ConversionError):
    pass


class EngineUnavailable(ConversionError):
    pass


class EngineFailed(ConversionError):
    pass
