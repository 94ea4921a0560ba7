"""The one error about what a model's config declares to Tidegate."""


class DeclarationError(ValueError):
    """An endpoint schema or a golden sample that cannot be used. It concerns this model alone: who
    reads several models goes on with the others.

    ``problem`` completes the sentence "the model ..."; ``remedy`` says what to do about it.
    ``model`` is '' where a text is read that does not say whose it is.
    """

    def __init__(
        self,
        problem: str,
        remedy: str = "publish the pipeline again from its declaration",
        model: str = "",
    ) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.model = problem, remedy, model

    def __str__(self) -> str:
        name = f"the model {self.model!r}" if self.model else "the model"
        return f"{name} {self.problem}: {self.remedy}"

    def of_model(self, name: str) -> "DeclarationError":
        return DeclarationError(self.problem, self.remedy, name)
