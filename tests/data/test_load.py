"""`load` reads arrays, archives, IDX files and folders of pictures, and says which file is none of these and why."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.data import load

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 5, 4), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 3


def every_image(data):
    """All images and labels, in the order of the file, by the first pixels that name them."""
    images = torch.cat((data.train.images, data.validation.images))
    labels = None if data.train.labels is None else torch.cat((data.train.labels, data.validation.labels))
    wanted = PIXELS.reshape(len(PIXELS), -1)
    order = [int((images[:, 0].flatten(1) == torch.from_numpy(row)).all(1).nonzero()[0, 0]) for row in wanted]
    return images[order], None if labels is None else labels[order]


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, suffix="", test=True):
    for part in ("train", "t10k") if test else ("train",):
        for kind, array in (("images-idx3-ubyte", PIXELS), ("labels-idx1-ubyte", LABELS)):
            content = idx_bytes(array)
            (folder / f"{part}-{kind}{suffix}").write_bytes(gzip.compress(content) if suffix else content)


def write_picture(path, pixels, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


class TestArrays:
    @pytest.mark.parametrize("layout", ["nhw", "nchw", "nhwc"])
    def test_npy_layouts(self, tmp_path, layout):
        array = {"nhw": PIXELS, "nchw": PIXELS[:, None], "nhwc": PIXELS[..., None]}[layout]
        np.save(tmp_path / "x.npy", array)
        images, labels = every_image(load(tmp_path / "x.npy"))
        assert torch.equal(images[:, 0], torch.from_numpy(PIXELS))
        assert labels is None

    def test_rgb_channels_last(self, tmp_path):
        array = np.random.default_rng(1).integers(0, 256, (6, 5, 4, 3))
        np.save(tmp_path / "x.npy", array)
        data = load(tmp_path / "x.npy")
        assert data.shape == (3, 5, 4)
        first = data.validation.images[0].permute(1, 2, 0).numpy()
        assert (first == array).reshape(6, -1).all(1).any()

    def test_npz_with_labels_and_levels(self, tmp_path):
        np.savez(tmp_path / "x.npz", images=PIXELS // 16, labels=LABELS.astype(np.int16), levels=16)
        data = load(tmp_path / "x.npz")
        assert (data.levels, data.num_classes) == (16, 3)

    def test_labels_stay_with_their_images(self, tmp_path):
        np.savez(tmp_path / "x.npz", x_train=PIXELS, y_train=LABELS)
        images, labels = every_image(load(tmp_path / "x.npz"))
        assert labels.tolist() == LABELS.tolist()
        assert torch.equal(images[:, 0], torch.from_numpy(PIXELS))

    def test_booleans_have_two_levels(self, tmp_path):
        np.save(tmp_path / "x.npy", PIXELS > 100)
        assert load(tmp_path / "x.npy").levels == 2

    def test_quantisation(self, tmp_path):
        np.save(tmp_path / "x.npy", PIXELS)
        data = load(tmp_path / "x.npy", levels=4)
        assert data.levels == data.validation.levels == 4
        assert int(data.train.images.max()) == 3

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (PIXELS / 255, r"holds float64 \[12, 5, 4\], expected integers 0 to 255"),
            (PIXELS.astype(int) * 2, "images run from 0 to"),
            (PIXELS[0], "has 5 rows of numbers, expected at least 10"),
            (PIXELS.astype(str), r"holds <U3 \[12, 5, 4\], .* or integers \[N, D\] or \[N\] for vectors"),
            (PIXELS[:0], "none of them 0"),
            (np.array([{}], dtype=object), "not a whole NumPy file"),
        ],
    )
    def test_arrays_that_are_no_images(self, tmp_path, array, message):
        np.save(tmp_path / "x.npy", array, allow_pickle=True)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "x.npy")

    @pytest.mark.parametrize("name", ["x.npy", "x.npz"])
    @pytest.mark.parametrize("keep", [0, 40, 150])
    def test_truncated(self, tmp_path, name, keep):
        (np.save if name == "x.npy" else np.savez)(tmp_path / name, PIXELS)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
        with pytest.raises(ValueError, match="not a whole NumPy file"):
            load(tmp_path / name)

    def test_npz_without_images(self, tmp_path):
        np.savez(tmp_path / "x.npz", pictures=PIXELS)
        with pytest.raises(ValueError, match="holds pictures, expected one of: images, vectors, x"):
            load(tmp_path / "x.npz")

    @pytest.mark.parametrize("labels", [LABELS[:3].astype(int), LABELS / 2, LABELS.astype(int) - 1])
    def test_labels_that_do_not_fit(self, tmp_path, labels):
        np.savez(tmp_path / "x.npz", images=PIXELS, labels=labels)
        with pytest.raises(ValueError, match="labels"):
            load(tmp_path / "x.npz")


class TestIDX:
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_folder(self, tmp_path, suffix):
        write_mnist(tmp_path, suffix)
        data = load(tmp_path)
        images, labels = every_image(data)
        assert torch.equal(images[:, 0], torch.from_numpy(PIXELS))
        assert labels.tolist() == LABELS.tolist()
        assert torch.equal(data.test.images[:, 0], torch.from_numpy(PIXELS))

    def test_one_file_takes_the_labels_beside_it(self, tmp_path):
        write_mnist(tmp_path)
        assert load(tmp_path / "train-images-idx3-ubyte").num_classes == 3
        (tmp_path / "train-labels-idx1-ubyte").unlink()
        assert load(tmp_path / "train-images-idx3-ubyte").num_classes is None

    def test_one_file_with_labels_from_elsewhere(self, tmp_path):
        write_mnist(tmp_path)
        (tmp_path / "classes").write_bytes(idx_bytes(LABELS * 2))
        data = load(tmp_path / "train-images-idx3-ubyte", labels=tmp_path / "classes")
        assert every_image(data)[1].tolist() == LABELS.tolist() and data.train.class_names == ("0", "2", "4")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\x89PNG not IDX", "starts with bytes 89 50 4e 47, expected 00 00 08 03"),
            (b"", "starts with bytes , expected"),
            (idx_bytes(LABELS), "starts with bytes 00 00 08 01, expected 00 00 08 03"),
            (idx_bytes(PIXELS)[:10], "truncated"),
            (idx_bytes(PIXELS)[:-1], "255 bytes, its header says 256"),
            (idx_bytes(PIXELS) + b"x", "257 bytes, its header says 256"),
            (idx_bytes(PIXELS[:0]), "holds no image"),
        ],
    )
    def test_files_that_are_not_what_they_claim(self, tmp_path, content, message):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)

    @pytest.mark.parametrize("keep", [5, 60])
    def test_truncated_gzip(self, tmp_path, keep):
        write_mnist(tmp_path, ".gz")
        path = tmp_path / "train-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ValueError, match="not a whole gzip file"):
            load(path)

    def test_labels_of_another_number(self, tmp_path):
        write_mnist(tmp_path)
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:5]))
        with pytest.raises(ValueError, match="has 5 labels, expected 12"):
            load(tmp_path)

    def test_folder_without_training_images(self, tmp_path):
        write_mnist(tmp_path)
        (tmp_path / "train-images-idx3-ubyte").unlink()
        with pytest.raises(ValueError, match="no file train-images-idx3-ubyte"):
            load(tmp_path)


class TestFolders:
    def test_grey_pictures(self, tmp_path):
        for i, pixels in enumerate(PIXELS):
            write_picture(tmp_path / f"{i:02}.png", pixels)
        (tmp_path / "notes.txt").write_text("passed over")
        (tmp_path / ".hidden.png").write_text("passed over too")
        images, labels = every_image(load(tmp_path))
        assert torch.equal(images[:, 0], torch.from_numpy(PIXELS))
        assert labels is None

    def test_subfolders_are_classes(self, tmp_path):
        for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
            write_picture(tmp_path / "cab"[label] / f"{i}.png", pixels)
        data = load(tmp_path)
        # In order of name: a, b, c are the labels 1, 2, 0 above.
        assert every_image(data)[1].tolist() == [[2, 0, 1][label] for label in LABELS]
        assert data.num_classes == 3

    def test_one_coloured_picture_makes_all_rgb(self, tmp_path):
        for i, pixels in enumerate(PIXELS):
            write_picture(tmp_path / f"{i}.png", pixels, "RGB" if i == 3 else "L")
        assert load(tmp_path).shape == (3, 5, 4)
        assert load(tmp_path, color="grey").shape == (1, 5, 4)

    def test_image_size_brings_all_to_one_square(self, tmp_path):
        for i in range(4):
            write_picture(tmp_path / f"{i}.png", np.full((8 + 4 * i, 16), 77, dtype=np.uint8))
        with pytest.raises(ValueError, match=r"1.png is 16x12 but .*0.png is 16x8.*--image-size"):
            load(tmp_path)
        data = load(tmp_path, image_size=6)
        assert data.shape == (1, 6, 6)
        assert (data.train.images == 77).all()

    @pytest.mark.parametrize("content", [b"", b"no picture at all"])
    def test_files_that_are_no_pictures(self, tmp_path, content):
        write_picture(tmp_path / "a.png", PIXELS[0])
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.png cannot be read as a picture"):
            load(tmp_path)

    def test_truncated_picture(self, tmp_path):
        write_picture(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
        (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
        with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture"):
            load(tmp_path)

    def test_more_than_sixteen_bits_are_refused(self, tmp_path):
        Image.fromarray(PIXELS[0].astype(np.float32)).save(tmp_path / "a.tiff")
        with pytest.raises(ValueError, match="mode F, more than the 16 bits"):
            load(tmp_path)

    def test_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match="holds no pictures"):
            load(tmp_path)

    def test_pictures_beside_subfolders(self, tmp_path):
        write_picture(tmp_path / "a.png", PIXELS[0])
        write_picture(tmp_path / "class" / "b.png", PIXELS[1])
        with pytest.raises(ValueError, match="pictures beside its subfolders"):
            load(tmp_path)


class TestOptions:
    def test_unknown_name_lists_the_choices(self):
        with pytest.raises(ValueError, match="no data 'digitz': expected a file or folder, or one of: digits"):
            load("digitz")

    def test_unknown_kind_of_file(self, tmp_path):
        (tmp_path / "x.doc").write_text("1,2")
        with pytest.raises(ValueError, match=r"x\.doc is no known data file: expected .csv, .*, .npy, .npz, IDX"):
            load(tmp_path / "x.doc")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_size": 8}, "for folders of pictures, which digits is not"),
            ({"image_size": 0}, "image_size is 0, expected at least 1"),
            ({"color": "blue"}, "color is 'blue', expected one of: grey, rgb"),
            ({"labels": "x"}, "labels is for one IDX file"),
            ({"levels": 18}, "levels is 18, expected 2 to 17"),
            ({"validation_fraction": 1.5}, "fraction is 1.5"),
        ],
    )
    def test_options_that_do_not_go_with_the_data(self, options, message):
        with pytest.raises(ValueError, match=message):
            load("digits", **options)
