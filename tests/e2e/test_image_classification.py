"""``image_classification`` through the running stack: the same answer from every API, bad
images."""

import base64
import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from converters.tasks.image_classification.photos import photo_file
from tests.ensembles.images import bad_images, colours, encoded
from tidegate.app.client import GatewayClient
from tidegate.app.demo_photo import describe_photo, show_photo

NAME = "image_classification"
PATH = f"/v1/{NAME}"
PAGE = Path(__file__).parents[2] / "docs" / "image-classification.md"
BAD = bad_images()
COFFEE = photo_file("coffee").read_bytes()
# The photo's best label is confident; the rest share 5 %.
ESPRESSO = 0.951


def _form(stack, image: bytes, name: str = "photo.jpg"):
    return stack.post(PATH, files={"image": (name, image)})


def _as_json(image: bytes) -> dict:
    return {"image": {"b64": base64.b64encode(image).decode()}}


def _pairs(response: dict) -> list[tuple[str, float]]:
    return [(label["label"], label["score"]) for label in response["labels"]]


def _input(library, *images: bytes):
    tensor = library.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image] for image in images], dtype=object))
    return tensor


def _named(result) -> list[tuple[str, float]]:
    label, score = result.as_numpy("label")[0], result.as_numpy("score")[0]
    return [(name.decode(), float(value)) for name, value in zip(label, score, strict=True)]


def _v2(stack, *images: bytes):
    with http_client.InferenceServerClient(stack.url.removeprefix("http://")) as client:
        return client.infer(NAME, [_input(http_client, *images)], headers=stack.headers)


def _grpc(stack, *images: bytes):
    with grpc_client.InferenceServerClient(stack.grpc_address) as client:
        return client.infer(NAME, [_input(grpc_client, *images)])


def test_every_api_gives_the_same_answer(stack):
    by_form = _pairs(_form(stack, COFFEE, "coffee.png").json())
    assert by_form[0][0] == "espresso"
    assert by_form[0][1] == pytest.approx(ESPRESSO, abs=2e-3)
    assert len(by_form) == 5
    for other in (
        _pairs(stack.post(PATH, json=_as_json(COFFEE)).json()),
        _named(_v2(stack, COFFEE)),
        _named(_grpc(stack, COFFEE)),
    ):
        assert [name for name, _ in other] == [name for name, _ in by_form]
        assert [s for _, s in other] == pytest.approx([s for _, s in by_form], abs=1e-5)


def test_several_images_in_one_request(stack):
    cat = photo_file("chelsea").read_bytes()
    response = stack.post(PATH, json={"inputs": [_as_json(COFFEE), _as_json(cat)]}).json()
    first, second = (_pairs(output) for output in response["outputs"])
    assert first[0][0] == "espresso"
    assert "cat" in second[0][0]


def test_requests_are_batched(stack):
    def counts() -> tuple[int, int]:
        statistics = client.get_inference_statistics(f"{NAME}_onnx").model_stats[0]
        return statistics.inference_count, statistics.execution_count

    with grpc_client.InferenceServerClient(stack.grpc_address) as client:
        before = counts()
        with ThreadPoolExecutor(16) as pool:
            responses = list(pool.map(lambda _: _form(stack, COFFEE).json(), range(64)))
        after = counts()
    assert {_pairs(response)[0][0] for response in responses} == {"espresso"}
    assert after[0] - before[0] >= 64
    assert after[1] - before[1] < after[0] - before[0]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_the_clients_error(stack, name):
    image, message = BAD[name]
    response = _form(stack, image)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert message in response.json()["detail"]
    assert response.json()["code"] == "invalid_request"


@pytest.mark.parametrize("name", ["empty", "text called .jpg", "animated png", "bomb"])
def test_a_bad_image_is_refused_by_every_api(stack, name):
    image, message = BAD[name]
    by_json = stack.post(PATH, json=_as_json(image))
    assert by_json.status_code == 422
    assert message in by_json.json()["detail"]
    with pytest.raises(InferenceServerException, match=message) as by_v2:
        _v2(stack, image)
    assert by_v2.value.status() == "400"
    with pytest.raises(InferenceServerException, match=message) as by_grpc:
        _grpc(stack, image)
    assert "INVALID_ARGUMENT" in by_grpc.value.status()


def test_a_bad_image_fails_only_its_own_request(stack):
    images = [COFFEE, BAD["truncated jpeg"][0], COFFEE, b""] * 6
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda image: _form(stack, image), images))
    assert [response.status_code for response in responses] == [200, 422, 200, 422] * 6
    assert {_pairs(a.json())[0][0] for a in responses if a.status_code == 200} == {"espresso"}


def _resident_mb(processes: list[psutil.Process]) -> float:
    return max(process.memory_info().rss for process in processes) / 1e6


def test_memory_stays_bounded(stack):
    """Bombs take nothing; the memory of the largest allowed image is released afterwards."""
    stubs = stack.stubs(f"{NAME}_pre")
    assert stubs
    before = _resident_mb(stubs)
    for name in ("50 megapixels", "bomb", "webp bomb"):
        assert _form(stack, BAD[name][0]).status_code == 422
    assert _resident_mb(stubs) - before < 30
    largest = encoded(colours((5000, 5000)), "JPEG", quality=60)
    assert _form(stack, largest).status_code == 200
    assert _resident_mb(stubs) - before < 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": {"photo": ("a.jpg", b"x")}}, "unknown field 'photo': send image"),
        ({"files": {"image": ("a", b"x")}, "data": {"k": "3"}}, "unknown field 'k'"),
        ({"json": {"image": "x"}}, "image"),
        ({"json": {"image": {"b64": "not base64!"}}}, "image.b64 is not base64"),
        ({"json": {}}, '"image" is a required property'),
    ],
)
def test_a_request_that_does_not_fit_names_the_field(stack, options, message):
    response = stack.post(PATH, **options)
    assert response.status_code == 422
    assert message in response.json()["detail"]


def test_a_form_over_the_limit_is_refused(stack):
    response = _form(stack, bytes(33 << 20))
    assert response.status_code == 413


def test_a_form_needs_a_key(stack):
    bare = httpx.post(stack.url + PATH, files={"image": ("a.jpg", COFFEE)}, timeout=30)
    assert bare.status_code == 401


def test_the_endpoint_is_described(stack):
    operation = stack.get("/openapi.json").json()["paths"][PATH]["post"]
    content = operation["requestBody"]["content"]
    assert content["multipart/form-data"]["schema"]["properties"]["image"]["format"] == "binary"
    assert "application/json" in content
    assert "EfficientNet-Lite0" in operation["description"]


def test_the_gateway_knows_no_task():
    for path in (Path(__file__).parents[2] / "gateway").glob("*.py"):
        assert NAME not in path.read_text()


def test_the_demo_shows_a_photo(stack):
    photo = show_photo(GatewayClient(stack.url, stack.key))
    assert photo.labels[0]["label"] == "espresso"
    assert "95.1%  espresso" in describe_photo(photo)


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def _with_this_stacks_ports(stack, text: str) -> str:
    """The page's code with this stack's ports."""
    moved = text.replace("http://127.0.0.1:8080", stack.url)
    return moved.replace("127.0.0.1:8001", stack.grpc_address)


@pytest.fixture
def folder(stack, tmp_path):
    """A folder for the page's commands: a photo, and the key where `up` puts it."""
    (tmp_path / "photo.jpg").write_bytes(COFFEE)
    (tmp_path / ".tidegate").symlink_to(stack.home / ".tidegate")
    return tmp_path


def test_the_pages_commands_work(stack, folder):
    commands = _blocks("bash")
    assert len(commands) >= 2
    for command in commands:
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", _with_this_stacks_ports(stack, command)],
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
        )
        assert run.returncode == 0, f"{shlex.quote(command)}: {run.stderr}"
        assert json.loads(run.stdout)["labels"][0]["label"] == "espresso"


def test_the_pages_programs_work(stack, folder):
    programs = _blocks("python")
    assert programs
    for program in programs:
        run = subprocess.run(
            [sys.executable, "-c", _with_this_stacks_ports(stack, program)],
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith("espresso 0.95")
