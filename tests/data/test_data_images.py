"""Folders of image files and CelebA: cropping, resizing, classes, and files that do not fit."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vapo_fast import data

RNG = np.random.default_rng(0)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def colour(height=6, width=5):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def test_flat_folder(tmp_path):
    originals = {f"{i}.png": colour() for i in range(3)}
    for name, pixels in originals.items():
        write(tmp_path / name, pixels)
    (tmp_path / "notes.txt").write_text("not an image")
    dataset = data.load(tmp_path)
    assert dataset.event_shape == (3, 6, 5)
    assert dataset.labels is None
    assert torch.equal(dataset.tensor(), torch.stack([as_tensor(originals[name]) for name in sorted(originals)]))


def test_class_folders_and_splits(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for label in ("cat", "ant"):
            for i in range(count):
                write(
                    tmp_path / split / label / f"{i}.jpg", np.full((6, 6, 3), 10 if label == "ant" else 240, np.uint8)
                )
    train, test = data.load(tmp_path), data.load(tmp_path, split="test")
    assert (len(train), len(test)) == (6, 4)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert float(train[0].mean()) < -0.9
    assert float(train[5].mean()) > 0.85


def test_many_images_decoded_in_threads_keep_their_order(tmp_path):
    for i in range(40):
        write(tmp_path / f"{i:03}.png", np.full((4, 4), i, np.uint8))
    before = torch.get_num_threads()
    dataset = data.load(tmp_path)
    try:
        torch.set_num_threads(3)
        parallel = dataset.batch(range(40))
    finally:
        torch.set_num_threads(before)
    assert dataset.event_shape == (1, 4, 4)
    assert torch.equal(((parallel[:, 0, 0, 0] + 1) * 127.5).round(), torch.arange(40.0))


def test_resizing_crops_the_centre(tmp_path):
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    write(tmp_path / "wide.png", pixels)
    write(tmp_path / "tall.png", pixels.transpose(1, 0, 2))
    dataset = data.load(tmp_path, image_size=4)
    assert dataset.event_shape == (3, 4, 4)
    assert torch.allclose(dataset.tensor()[..., 1:3, 1:3], torch.ones(2, 3, 2, 2))
    assert float(dataset.tensor().mean()) > 0.7


def test_modes(tmp_path):
    write(tmp_path / "grey.png", RNG.integers(0, 256, (6, 5), dtype=np.uint8))
    assert data.load(tmp_path).event_shape == (1, 6, 5)
    write(tmp_path / "transparent.png", RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8))
    assert data.load(tmp_path).event_shape == (3, 6, 5)


def test_colour_hidden_behind_grey_is_an_error(tmp_path):
    for i in range(200):
        write(tmp_path / f"{i:03}.png", np.full((4, 4), i, np.uint8))
    write(tmp_path / "010.png", colour(4, 4))
    dataset = data.load(tmp_path)
    assert dataset.event_shape == (1, 4, 4)
    with pytest.raises(data.DataFormatError, match=r"010\.png: has colours"):
        dataset.batch([9, 10])
    paths = sorted(tmp_path.iterdir())
    assert data.ImageFolder(paths, name="x", channels=1).batch([10]).shape == (1, 1, 4, 4)


def test_camera_rotation_is_obeyed(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "a.png", pixels, exif=exif)
    dataset = data.load(tmp_path)
    assert dataset.event_shape == (3, 8, 4)
    assert torch.equal(dataset[0], as_tensor(np.rot90(pixels, -1).copy()))


def test_damaged_and_missing_images(tmp_path):
    for i in range(200):
        write(tmp_path / f"{i:03}.png", colour())
    dataset = data.load(tmp_path)
    whole = (tmp_path / "011.png").read_bytes()
    (tmp_path / "011.png").write_bytes(whole[: len(whole) - 40])
    (tmp_path / "013.png").write_text("no image")
    (tmp_path / "014.png").unlink()
    assert dataset.batch([10]).shape == (1, 3, 6, 5)
    with pytest.raises(data.DataFormatError, match=r"011\.png: cannot be read as an image"):
        dataset.batch([11])
    with pytest.raises(data.DataFormatError, match=r"013\.png: cannot be read as an image"):
        dataset.batch([13])
    with pytest.raises(data.DataNotFoundError, match=r"014\.png: no such image"):
        dataset.batch([14])


def test_truncated_jpeg(tmp_path):
    whole = write(tmp_path / "a.jpg", colour(32, 32)).read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.DataFormatError, match=r"a\.jpg: cannot be read as an image"):
        data.load(tmp_path).tensor()


def test_folders_without_use(tmp_path):
    write(tmp_path / "a.png", colour())
    with pytest.raises(data.DataNotFoundError, match="has no subfolder 'test'"):
        data.load(tmp_path, split="test")
    write(tmp_path / "class" / "b.png", colour())
    with pytest.raises(data.DataFormatError, match=r"both beside and inside its subfolders \(class\)"):
        data.load(tmp_path)
    with pytest.raises(ValueError, match="paths must name at least one image"):
        data.ImageFolder([], name="x")
    with pytest.raises(ValueError, match="channels must be 1, 3 or None"):
        data.ImageFolder([tmp_path / "a.png"], name="x", channels=4)


def test_folder_survives_pickling_for_loader_workers(tmp_path):
    write(tmp_path / "a.png", colour())
    dataset = data.load(tmp_path)
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).tensor(), dataset.tensor())


def write_celeba(root, names_and_parts, height=218, width=178):
    for name, _ in names_and_parts:
        write(root / "img_align_celeba" / name, colour(height, width))
    (root / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, part in names_and_parts))


def test_celeba(tmp_path):
    write_celeba(tmp_path / "celeba", [("000001.png", 0), ("000002.png", 1), ("000003.png", 2), ("000004.png", 0)])
    sizes = {split: len(data.load("celeba", root=tmp_path, split=split)) for split in ("train", "valid", "test")}
    assert sizes == {"train": 2, "valid": 1, "test": 1}
    assert data.load("celeba", root=tmp_path).event_shape == (3, 64, 64)
    full = data.load("celeba", root=tmp_path, image_size=140)
    original = np.asarray(Image.open(tmp_path / "celeba" / "img_align_celeba" / "000004.png"))
    assert torch.equal(full[1], as_tensor(original[39:179, 19:159].copy()))


def test_celeba_errors(tmp_path):
    write_celeba(tmp_path, [("a.png", 0), ("b.png", 0)])
    (tmp_path / "img_align_celeba" / "b.png").unlink()
    with pytest.raises(data.DataNotFoundError, match=r"1 of 2 images are not in .*the first b\.png"):
        data.load("celeba", root=tmp_path)
    with pytest.raises(data.DataFormatError, match="lists no image of split 'test'"):
        data.load("celeba", root=tmp_path, split="test")
    for line in ("a.png", "a.png 7", "../a.png 0"):
        (tmp_path / "list_eval_partition.txt").write_text(f"a.png 0\n{line}\n")
        with pytest.raises(data.DataFormatError, match=r"line 2 must be 'FILE 0\|1\|2'"):
            data.load("celeba", root=tmp_path)
    write_celeba(tmp_path / "small", [("a.png", 0)], height=100, width=178)
    with pytest.raises(data.DataFormatError, match="too small for a central crop of 140"):
        data.load("celeba", root=tmp_path / "small")
