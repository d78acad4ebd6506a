"""Pictures as cameras, drawing programs and microscopes write them, and that every command reads them alike."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.data import load
from fastgen.data.folder import open_folder, read_folder, read_picture
from fastgen.remark import Remark
from tests.command_errors import fails

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (4, 6), dtype=np.uint8)
COLOR = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)
ALPHA = RANDOM.choice(np.array([0, 255], dtype=np.uint8), (4, 6))


def on(background, pixels, alpha=ALPHA):
    """What shows of pixels where `alpha` is 0 or 255."""
    return np.where(alpha[..., None] > 0, pixels, np.array(background, dtype=np.uint8))


def with_alpha(pixels, mode):
    picture = Image.fromarray(pixels).convert(mode[:-1])
    picture.putalpha(Image.fromarray(ALPHA))
    assert picture.mode == mode
    return picture


def palette(transparent):
    """Two colours; the first of them, of which nobody should see anything, may be transparent."""
    picture = Image.fromarray((ALPHA > 0).astype(np.uint8)).convert("P")
    picture.putpalette([200, 10, 20, 30, 40, 250])
    return picture, {"transparency": 0} if transparent else {}


IN_PALETTE = np.where(ALPHA[..., None] > 0, np.array([30, 40, 250]), np.array([200, 10, 20]))
WHITE_BEHIND = on((255, 255, 255), IN_PALETTE)
# A picture, what it is saved with, and what is read.
PICTURES = {
    "grey": (Image.fromarray(GREY), {}, GREY),
    "colour": (Image.fromarray(COLOR), {}, COLOR),
    "black and white": (Image.fromarray(ALPHA > 0), {}, ALPHA),
    "transparent": (with_alpha(COLOR, "RGBA"), {}, on((255, 255, 255), COLOR)),
    "transparent grey": (with_alpha(GREY, "LA"), {}, on((255,), GREY[..., None])[..., 0]),
    "a palette": (palette(False)[0], palette(False)[1], IN_PALETTE),
    "a palette with a transparent colour": (palette(True)[0], palette(True)[1], WHITE_BEHIND),
    "a grey that is transparent": (
        Image.fromarray(GREY),
        {"transparency": int(GREY[0, 0])},
        np.where(GREY[0, 0] == GREY, 255, GREY),
    ),
    "sixteen bits": (Image.fromarray(GREY.astype(np.uint16) * 257), {}, GREY),
    "sixteen bits, rounded": (Image.fromarray(GREY.astype(np.uint16) * 257 + 100), {}, GREY),
    "sixteen bits, one transparent": (
        Image.fromarray(GREY.astype(np.uint16) * 257),
        {"transparency": int(GREY[1, 1]) * 257},
        np.where(GREY[1, 1] == GREY, 255, GREY),
    ),
}


def save(path, case):
    picture, options, expected = PICTURES[case]
    Path(path).parent.mkdir(exist_ok=True)
    picture.save(path, **options)
    return expected


def in_orientation(path, pixels, orientation):
    """Save `pixels` as a camera does that was held otherwise: turned, and with the way back."""
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    picture, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    Path(path).parent.mkdir(exist_ok=True)
    (picture.transpose(stored[orientation]) if orientation > 1 else picture).save(path, exif=exif)


def channels_first(expected):
    return np.atleast_3d(expected).transpose(2, 0, 1)


@pytest.mark.filterwarnings("ignore::fastgen.remark.Remark")
@pytest.mark.parametrize("case", PICTURES)
def test_is_read_as_it_is_seen(tmp_path, case):
    expected = channels_first(save(tmp_path / "a" / "x.png", case))
    assert np.array_equal(np.atleast_3d(read_picture(tmp_path / "a" / "x.png")).transpose(2, 0, 1), expected)
    # All at once, and a batch at a time.
    assert np.array_equal(read_folder(tmp_path / "a").images[0], expected)
    assert np.array_equal(next(open_folder(tmp_path / "a").batches(7))[0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("pixels", [GREY, COLOR, GREY.astype(np.uint16) * 257], ids=["grey", "colour", "sixteen bits"])
@pytest.mark.filterwarnings("ignore::fastgen.remark.Remark")
def test_cameras_are_turned(tmp_path, orientation, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    in_orientation(tmp_path / "b.png", pixels, orientation)
    first, second = read_folder(tmp_path).images
    assert torch.equal(first, second)


def test_half_transparent_is_mixed(tmp_path):
    Image.new("RGBA", (2, 2), (200, 100, 0, 128)).save(tmp_path / "x.png")
    for background, color in (("white", 255), ("black", 0), ("#404040", 64)):
        expected = [round((128 * value + 127 * color) / 255) for value in (200, 100, 0)]
        read = read_folder(tmp_path, background=background).images[0, :, 0, 0].tolist()
        assert np.abs(np.subtract(read, expected)).max() <= 1, background


def test_a_coloured_background_makes_grey_pictures_coloured(tmp_path):
    save(tmp_path / "x.png", "transparent grey")
    assert read_folder(tmp_path, background="black").shape == (1, 4, 6)
    images = read_folder(tmp_path, background="#ff8000").images[0]
    assert np.array_equal(images, channels_first(on((255, 128, 0), GREY[..., None])))
    with pytest.raises(ValueError, match="background is 'whitish', expected a colour: its name, such as white"):
        read_folder(tmp_path, background="whitish")


def test_sixteen_bits_are_said(tmp_path):
    save(tmp_path / "x.png", "sixteen bits")
    with pytest.warns(Remark, match="pictures of 16 bits a channel are read with 8"):
        read_folder(tmp_path)


def test_names_of_files_and_folders(tmp_path):
    for i, name in enumerate(["1/a.PNG", "1/deeper/b.png", "10/c.Jpeg", "2/d.png", "2/.e.png", ".f/g.png", "1/h.txt"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("txt"):
            Image.fromarray(np.full((4, 4), i, dtype=np.uint8)).save(tmp_path / name)
    images = read_folder(tmp_path)
    assert len(images) == 4 and images.class_names == ("1", "10", "2")
    assert [images.class_names[label] for label in images.labels] == ["1", "1", "10", "2"]


def test_bad_pictures_are_counted_and_passed_over(tmp_path):
    for i in range(12):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), i, dtype=np.uint8)).save(path)
    for name in ("a/4.png", "b/7.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a/4.png cannot be read as a picture: .*--skip-bad passes over"):
        load(tmp_path)
    with pytest.warns(Remark, match=r"passed over 2 of 12 pictures; the first: .*a/4.png cannot be read"):
        images = read_folder(tmp_path, skip_bad=True)
    assert [(int(image[0, 0, 0]), int(label)) for image, label in zip(images.images, images.labels, strict=True)] == [
        *((i, 0) for i in (0, 10, 2, 6, 8)),
        *((i, 1) for i in (1, 11, 3, 5, 9)),
    ]
    with pytest.raises(ValueError, match="skip_bad are for folders of pictures, which digits is not"):
        load("digits", skip_bad=True)


SMALL = ["--channels", 6, "--layers", 1, "--set", "first_kernel_size=3", "--epochs", 1, "--device", "cpu", "--quiet"]


class TestCommands:
    @pytest.fixture
    def folder(self, run):
        """Of pictures of every kind, of one size as they are seen; one of them cannot be read."""
        for i, case in enumerate(PICTURES):
            save(f"all/{i:02}.png", case)
        for orientation in (5, 6, 7, 8):
            in_orientation(f"all/2{orientation}.png", COLOR, orientation)
        Path("all/99.png").write_bytes(b"no picture")
        return "all"

    def test_all_read_pictures_alike(self, run, folder):
        assert fails(run("fid", folder, folder, "--features", "pixels"), "all/99.png cannot be read", "--skip-bad")
        assert fails(run("train", "pixelcnn", "--data", folder), "all/99.png cannot be read", "--skip-bad")
        for background in (None, "black"):
            options = ["--skip-bad", *(["--background", background] if background else [])]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Remark)
                images = read_folder(Path(folder), background=background, skip_bad=True)
            assert images.shape == (3, 4, 6)
            np.save("read.npy", images.images.numpy())
            status, output, errors = run("fid", folder, "read.npy", "--features", "pixels", "--json", *options)
            assert status == 0 and abs(json.loads(output)["metrics"]["fid"]) < 1e-9
            said = "fastgen: all: passed over 1 of 16 pictures; the first: all/99.png cannot be read as a picture"
            assert sum(line.startswith(said) for line in errors.splitlines()) == 1
            command = ["train", "pixelcnn", "--data", folder, "--levels", 4, "--out", f"run-{background}"]
            status, _, errors = run(*command, *options, *SMALL)
            assert status == 0 and said in errors, errors
            status, output, errors = run("evaluate", f"run-{background}", "--json", "--metrics", "none")
            assert status == 0, errors
            recorded = json.loads(Path(f"run-{background}/last/config.json").read_text())["data"]
            assert recorded["skip_bad"] is True and recorded.get("background") == background
        assert run("train", "--resume", "run-black", "--epochs", 2, "--quiet")[0] == 0

    def test_cameras_in_score(self, run):
        for i in range(12):
            pixels = np.random.default_rng(i).integers(0, 256, (4, 6, 3), dtype=np.uint8)
            in_orientation(f"turned/{i:02}.png", pixels, 1 + i % 8)
            in_orientation(f"upright/{i:02}.png", pixels, 1)
        command = ["score", "turned", "upright", "--features", "pixels", "--metrics", "fid,prdc", "--json"]
        status, output, _ = run(*command)
        numbers = json.loads(output)["metrics"]
        assert status == 0 and abs(numbers["fid"]) < 1e-9 and numbers["coverage"] == 1

    def test_a_name_that_is_no_text(self, run):
        folder = Path("p\udcff")
        for i in range(12):
            in_orientation(folder / f"{i}\udcfe.png", np.full((4, 4), 20 * i, dtype=np.uint8), 1)
        status, output, errors = run("fid", folder, folder, "--features", "pixels")
        assert status == 0 and "12 images" in output, errors
        status, _, errors = run("train", "pixelcnn", "--data", folder, "--levels", 4, "--out", "run", *SMALL)
        assert status == 0, errors
        assert run("evaluate", "run", "--metrics", "none")[0] == 0
