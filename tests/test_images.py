"""Untrusted image bytes and paths: every one becomes an upright RGB picture or one clear line."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from recbole_mm.data import images
from recbole_mm.data.decode import decode_image
from recbole_mm.data.images import ColumnImages, FolderImages, ImageSource, ZipImages
from recbole_mm.data.title_cards import TitleCards
from recbole_mm.errors import DataError, ImageError

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP"]
NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.fixture(autouse=True)
def no_warning_and_no_global_change():
    """No warning about big images may leak, and Pillow's process-wide switches stay as they were."""
    limit, tolerant = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
    assert limit == Image.MAX_IMAGE_PIXELS
    assert tolerant == ImageFile.LOAD_TRUNCATED_IMAGES


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def png(width: int, height: int, depth: int, color: int, data: bytes) -> bytes:
    """A PNG file from its parts; the data need not fit the header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def webp(kind: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + 8 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


class TestDecode:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_every_format_becomes_rgb(self, kind):
        picture = decode_image(encode(noise(), kind), "x")
        assert picture.mode == "RGB"
        assert picture.size == (40, 30)
        assert np.abs(np.asarray(picture, float) - np.asarray(noise(), float)).mean() < 70  # JPEG and GIF lose some

    @pytest.mark.parametrize("kind", FORMATS)
    def test_truncated_is_refused_wherever_it_is_cut(self, kind):
        data = encode(noise(), kind)
        for end in range(1, len(data) - 24, max(1, len(data) // 60)):
            with pytest.raises(ImageError, match="item 7") as caught:
                decode_image(data[:end], "item 7")
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("kind", FORMATS)
    def test_damaged_bytes_never_raise_anything_else(self, kind):
        data, rng = encode(noise(), kind), np.random.default_rng(1)
        for _ in range(100):
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 4):
                damaged[position] = rng.integers(0, 256)
            with contextlib.suppress(ImageError):
                assert decode_image(bytes(damaged), "x", max_pixels=100_000).mode == "RGB"

    def test_empty_file(self):
        with pytest.raises(ImageError, match=r"posters/3\.jpg: the image file is empty"):
            decode_image(b"", "posters/3.jpg")

    @pytest.mark.parametrize(
        "data", [b"<html>not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"II*\x00" + bytes(40), b"\0"]
    )
    def test_other_content_is_refused(self, data):
        with pytest.raises(ImageError, match="not a JPEG, PNG, WebP, GIF or BMP"):
            decode_image(data, "x.jpg")

    @pytest.mark.parametrize("suffix", ["jpg", "gif", "bmp"])
    def test_wrong_suffix_does_not_matter(self, tmp_path, suffix):
        (tmp_path / f"1.{suffix}").write_bytes(encode(noise(), "PNG"))
        picture = decode_image(FolderImages(tmp_path).read("1"), "1")
        assert np.array_equal(np.asarray(picture), np.asarray(noise()))

    def test_decompression_bomb_is_refused_before_decoding(self, monkeypatch):
        bomb = png(20_000, 20_000, 1, 0, bytes(2501 * 20_000))
        assert len(bomb) < 100_000
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
        with pytest.raises(ImageError, match=r"20000 x 20000 pixels, over the limit of 50,000,000.*max_image_pixels"):
            decode_image(bomb, "x")

    def test_between_pillows_warning_and_error_limits_no_warning(self):
        with pytest.raises(ImageError, match="10000 x 10000"):
            decode_image(png(10_000, 10_000, 1, 0, b""), "x")

    @pytest.mark.parametrize(
        "data",
        [
            webp(b"VP8X", bytes(4) + (15_999).to_bytes(3, "little") * 2),
            webp(b"VP8L", b"\x2f" + (15_999 | 15_999 << 14).to_bytes(4, "little")),
            webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + (16_000).to_bytes(2, "little") * 2),
        ],
    )
    def test_webp_bomb_is_refused_before_its_canvas_is_allocated(self, data, monkeypatch):
        monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile._open", lambda self: pytest.fail("opened"))
        with pytest.raises(ImageError, match="16000 x 16000"):
            decode_image(data, "x")

    @pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"quality": 80, "exif": b"Exif\0\0"}])
    def test_webp_size_is_read_as_pillow_reads_it(self, options):
        data = encode(noise(37, 23), "WEBP", **options)
        assert decode_image(data, "x", max_pixels=37 * 23).size == (37, 23)
        with pytest.raises(ImageError, match="37 x 23"):
            decode_image(data, "x", max_pixels=37 * 23 - 1)

    def test_limit_is_an_argument(self):
        data = encode(noise(40, 30))
        assert decode_image(data, "x", max_pixels=1200).size == (40, 30)
        with pytest.raises(ImageError, match="over the limit of 1,199"):
            decode_image(data, "x", max_pixels=1199)

    def test_cmyk(self):
        picture = decode_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), "x")
        red, green, blue = picture.getpixel((8, 8))
        assert red > 230
        assert max(green, blue) < 40

    def test_palette_transparency_lies_over_white(self):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 0, 0])
        image.putpixel((1, 0), 1)
        picture = decode_image(encode(image, "PNG", transparency=0), "x")
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        assert picture.getpixel((1, 0)) == (200, 0, 0)

    @pytest.mark.parametrize(
        ("mode", "pixel", "seen"),
        [
            ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
            ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
            ("LA", (0, 0), (255, 255, 255)),
            ("LA", (80, 255), (80, 80, 80)),
            ("L", 80, (80, 80, 80)),
            ("1", 1, (255, 255, 255)),
        ],
    )
    def test_other_modes(self, mode, pixel, seen):
        assert decode_image(encode(Image.new(mode, (4, 4), pixel)), "x").getpixel((1, 1)) == seen

    def test_sixteen_bit_gray_is_scaled_not_clipped(self):
        data = png(3, 1, 16, 0, b"\0" + struct.pack(">HHH", 0, 0x4000, 0xFFFF))
        assert [decode_image(data, "x").getpixel((column, 0))[0] for column in range(3)] == [0, 64, 255]

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
    def test_animation_is_its_first_frame(self, kind):
        frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        red, green, blue = decode_image(data, "x").getpixel((4, 4))
        assert red > 240
        assert max(green, blue) < 15

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied_and_gone(self, kind, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = decode_image(encode(halves(), kind, exif=exif), "x")
        assert picture.size == ((40, 20) if orientation < 5 else (20, 40))
        width, height = picture.size
        corners = [(3, 3), (width - 4, 3), (3, height - 4), (width - 4, height - 4)]
        seen = "".join("r" if red > 128 else "b" for red, _, _ in map(picture.getpixel, corners))
        assert (
            seen
            == {1: "rbrb", 2: "brbr", 3: "brbr", 4: "rbrb", 5: "rrbb", 6: "rrbb", 7: "bbrr", 8: "bbrr"}[orientation]
        )
        assert not picture.getexif()

    def test_broken_exif_does_not_spoil_the_picture(self):
        data = encode(halves(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage")
        assert decode_image(data, "x").size == (40, 20)

    @pytest.mark.parametrize("kind", FORMATS)
    def test_max_side_keeps_the_shape(self, kind):
        assert decode_image(encode(noise(400, 200), kind), "x", max_side=64).size == (64, 32)
        assert decode_image(encode(noise(40, 20), kind), "x", max_side=64).size == (40, 20)

    def test_max_side_decodes_jpeg_at_a_reduced_scale(self, monkeypatch):
        decoded = []
        load = ImageFile.ImageFile.load
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (decoded.append(self.size), load(self))[1])
        decode_image(encode(noise(1600, 800), "JPEG"), "x", max_side=200)
        assert decoded[0] == (200, 100)

    def test_same_bytes_same_picture(self):
        data = encode(noise(300, 200), "JPEG")
        assert decode_image(data, "x", max_side=100).tobytes() == decode_image(data, "x", max_side=100).tobytes()


class TestFolder:
    def test_finds_by_stem_below_any_folder(self, tmp_path):
        (tmp_path / "a" / "b").mkdir(parents=True)
        for name in ("1.jpg", "a/2.PNG", "a/b/3.x.webp", "notes.txt", "a/4.pdf"):
            (tmp_path / name).write_bytes(name.encode())
        source = FolderImages(tmp_path)
        assert isinstance(source, ImageSource)
        assert sorted(source.names()) == ["1", "2", "3.x"]
        assert source.read("2") == b"a/2.PNG"
        assert source.has("3.x")
        assert not source.has("4")

    def test_repeated_names_are_counted_and_the_first_is_used(self, tmp_path, caplog):
        (tmp_path / "z").mkdir()
        for name in ("1.png", "1.jpg", "z/1.jpg", "2.jpg"):
            (tmp_path / name).write_bytes(name.encode())
        with caplog.at_level(logging.WARNING):
            source = FolderImages(tmp_path)
        assert source.read("1") == b"1.jpg"
        assert "2 image files repeat" in caplog.text

    def test_every_suffix_that_pillow_knows_of_these_formats_counts(self, tmp_path, caplog):
        assert set(images.IMAGE_SUFFIXES) == {suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS}
        for place, suffix in enumerate(images.IMAGE_SUFFIXES):
            (tmp_path / f"{place}{suffix.upper()}").write_bytes(b"x")
        for name in ("a.avif", "b.avif", "c.tif", "readme", ".DS_Store"):
            (tmp_path / name).write_bytes(b"x")
        with caplog.at_level(logging.WARNING):
            assert len(list(FolderImages(tmp_path).names())) == len(images.IMAGE_SUFFIXES)
        assert "4 files do not count as images by their names (.avif: 2, " in caplog.text

    def test_the_unicode_form_of_a_name_does_not_matter(self, tmp_path):
        (tmp_path / f"{NFD}.jpg").write_bytes(b"one")
        source = FolderImages(tmp_path)
        assert source.has(NFC)
        assert source.read(NFC) == source.read(NFD) == b"one"
        (tmp_path / f"{NFC}.jpg").write_bytes(b"two")
        source = pickle.loads(pickle.dumps(FolderImages(tmp_path)))
        assert (source.read(NFD), source.read(NFC)) == (b"one", b"two"), "a name as it is written comes first"
        assert not source.has("cafe")

    def test_a_name_in_two_other_forms_is_refused(self, tmp_path):
        both = ["\u1e9b\u0323", "\u017f\u0323\u0307"]  # one letter in two forms, and neither of them is NFD
        for name in both:
            (tmp_path / f"{name}.jpg").write_bytes(b"x")
        with pytest.raises(DataError, match="in two Unicode forms; keep one"):
            FolderImages(tmp_path).has("\u017f\u0307\u0323")

    @pytest.mark.parametrize("item_id", ["../secret", "..", "", "/etc/passwd", "a/2", "./1", "1.jpg", "1\0"])
    def test_ids_that_are_paths_never_resolve(self, tmp_path, item_id):
        (tmp_path / "secret.jpg").write_bytes(b"secret")
        (tmp_path / "images" / "a").mkdir(parents=True)
        for name in ("1.jpg", "a/2.jpg"):
            (tmp_path / "images" / name).write_bytes(b"x")
        source = FolderImages(tmp_path / "images")
        assert not source.has(item_id)
        with pytest.raises(ImageError, match="no image in"):
            source.read(item_id)

    def test_links_that_leave_the_dataset_folder_are_not_followed(self, tmp_path, caplog):
        outside, data = tmp_path / "outside", tmp_path / "data"
        (data / "images").mkdir(parents=True)
        outside.mkdir()
        (outside / "9.jpg").write_bytes(b"secret")
        (data / "spare.jpg").write_bytes(b"spare")
        (data / "images" / "1.jpg").symlink_to(outside / "9.jpg")
        (data / "images" / "2.jpg").symlink_to(data / "spare.jpg")
        (data / "images" / "folder").symlink_to(outside)
        with caplog.at_level(logging.WARNING):
            source = FolderImages(data / "images", within=data)
        assert sorted(source.names()) == ["2"]
        assert source.read("2") == b"spare"
        assert "2 symbolic links leave" in caplog.text

    def test_an_image_folder_that_is_itself_a_link_outside(self, tmp_path):
        (tmp_path / "outside").mkdir()
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "images").symlink_to(tmp_path / "outside")
        with pytest.raises(DataError, match="give image_dir as an absolute path"):
            FolderImages(tmp_path / "data" / "images", within=tmp_path / "data")
        assert list(FolderImages(tmp_path / "data" / "images").names()) == []

    def test_missing_folder(self, tmp_path):
        with pytest.raises(DataError, match="does not exist; set image_dir"):
            FolderImages(tmp_path / "none")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_pipe_does_not_hang(self, tmp_path):
        os.mkfifo(tmp_path / "1.jpg")
        with pytest.raises(ImageError, match="not a regular file"):
            FolderImages(tmp_path).read("1")

    def test_a_file_that_vanished(self, tmp_path):
        (tmp_path / "1.jpg").write_bytes(b"x")
        source = FolderImages(tmp_path)
        (tmp_path / "1.jpg").unlink()
        with pytest.raises(ImageError, match=r"item 1, .*1\.jpg: cannot be read \(No such file"):
            source.read("1")

    def test_file_size_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
        (tmp_path / "1.jpg").write_bytes(bytes(11))
        with pytest.raises(ImageError, match="11 bytes, over the limit of 10"):
            FolderImages(tmp_path).read("1")


class TestZip:
    @pytest.fixture
    def archive(self, tmp_path):
        path = tmp_path / "images.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for number in range(50):
                file.writestr(f"posters/{number}.jpg", bytes([number]) * 20_000)
            file.writestr("../../escape.jpg", b"held")
            file.writestr("readme.txt", b"text")
        return path

    def test_reads_members_by_stem(self, archive):
        source = ZipImages(archive)
        assert isinstance(source, ImageSource)
        assert len(list(source.names())) == 51
        assert source.read("7") == bytes([7]) * 20_000
        assert not source.has("readme")
        assert not source.has("posters/7")
        with pytest.raises(ImageError, match="item 99: no image in"):
            source.read("99")

    @pytest.mark.parametrize("marked", [True, False])
    def test_names_in_utf_8_are_read_whether_marked_or_not(self, tmp_path, marked):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            file.writestr(f"{NFD}.jpg", b"one")
        if not marked:  # as macOS packs: the bytes of UTF-8 without the flag that says so
            data = bytearray((tmp_path / "a.zip").read_bytes())
            for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
                data[data.index(sign) + place + 1] &= ~0x08
            (tmp_path / "a.zip").write_bytes(data)
        assert ZipImages(tmp_path / "a.zip").read(NFC) == b"one"

    def test_names_of_code_page_437(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            file.writestr("caf?.jpg", b"one")
        data = (tmp_path / "a.zip").read_bytes().replace(b"caf?", b"caf\x82")
        (tmp_path / "a.zip").write_bytes(data)
        assert ZipImages(tmp_path / "a.zip").read(NFC) == b"one"

    def test_nothing_is_extracted(self, archive, tmp_path):
        assert ZipImages(archive).read("escape") == b"held"
        assert [path.name for path in tmp_path.iterdir()] == ["images.zip"]

    def test_threads_read_the_right_bytes(self, archive):
        source = ZipImages(archive)
        ids = [str(number % 50) for number in range(600)]
        with ThreadPoolExecutor(8) as pool:
            for item_id, data in zip(ids, pool.map(source.read, ids)):
                assert data == bytes([int(item_id)]) * 20_000

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_a_forked_process_opens_its_own_file(self, archive):
        source = ZipImages(archive)
        before = source._archive()
        child = os.fork()
        if child == 0:
            good = source._archive() is not before and source.read("3") == bytes([3]) * 20_000
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert source.read("4") == bytes([4]) * 20_000

    def test_pickles_without_its_handle(self, archive):
        assert pickle.loads(pickle.dumps(ZipImages(archive))).read("2") == bytes([2]) * 20_000

    def test_member_size_is_checked_before_reading(self, archive, monkeypatch):
        monkeypatch.setattr(images, "MAX_FILE_BYTES", 19_999)
        monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("read"))
        with pytest.raises(ImageError, match="20,000 bytes, over the limit"):
            ZipImages(archive).read("1")

    def test_damaged_member(self, archive):
        data = bytearray(archive.read_bytes())
        start = data.index(b"posters/5.jpg") + len("posters/5.jpg")
        data[start : start + 8] = b"\xff" * 8
        archive.write_bytes(data)
        with pytest.raises(ImageError, match=r"item 5, posters/5\.jpg in .*cannot be read"):
            ZipImages(archive).read("5")

    @pytest.mark.parametrize(
        ("content", "message"), [(None, "does not exist"), (b"no zip", "cannot be opened as a zip")]
    )
    def test_not_a_zip(self, tmp_path, content, message):
        if content is not None:
            (tmp_path / "x.zip").write_bytes(content)
        with pytest.raises(DataError, match=message):
            ZipImages(tmp_path / "x.zip")


class TestColumn:
    @pytest.fixture
    def root(self, tmp_path):
        (tmp_path / "data" / "a").mkdir(parents=True)
        (tmp_path / "data" / "a" / "1.jpg").write_bytes(b"one")
        (tmp_path / "secret.jpg").write_bytes(b"secret")
        return tmp_path / "data"

    def test_reads_relative_paths(self, root):
        source = ColumnImages(root, {"x": "a/1.jpg", "y": "a/../a/1.jpg", "z": "a/none.jpg", "w": ""})
        assert isinstance(source, ImageSource)
        assert sorted(source.names()) == ["x", "y"]
        assert source.read("y") == b"one"
        with pytest.raises(ImageError, match="item z: no image below"):
            source.read("z")

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("../secret.jpg", "leaves"),
            ("a/../../secret.jpg", "leaves"),
            ("../data-2/1.jpg", "leaves"),
            ("/etc/passwd", "absolute"),
            ("C:\\posters\\1.jpg", "absolute"),
            ("https://example.org/1.jpg", "URL"),
            ("a/1.jpg\0", "NUL"),
            ("..", "leaves"),
        ],
    )
    def test_escaping_paths_are_refused_by_name(self, root, path, message):
        with pytest.raises(DataError, match=message) as caught:
            ColumnImages(root, {"ok": "a/1.jpg", "item-7": path})
        assert "item-7" in str(caught.value)
        assert repr(path) in str(caught.value)

    def test_the_unicode_form_of_a_path_does_not_matter(self, root):
        folder = root / f"{NFD} covers"
        folder.mkdir()
        (folder / f"{NFD}.jpg").write_bytes(b"one")
        source = ColumnImages(root, {"a": f"{NFC} covers/{NFC}.jpg", "b": f"{NFC}/x.jpg"})
        assert (source.read("a"), source.has("b")) == (b"one", False)
        with pytest.raises(DataError, match="leaves"):
            ColumnImages(root, {"a": f"../{NFC}/../../x.jpg"})

    def test_link_that_leaves_is_refused(self, root):
        (root / "a" / "2.jpg").symlink_to(root.parent / "secret.jpg")
        (root / "b").symlink_to(root.parent)
        for path in ("a/2.jpg", "b/secret.jpg"):
            with pytest.raises(DataError, match=r"item 2: .*leaves"):
                ColumnImages(root, {"2": path})

    def test_missing_root(self, tmp_path):
        with pytest.raises(DataError, match="image_field"):
            ColumnImages(tmp_path / "none", {})


class TestTitleCards:
    def test_draws_the_same_bytes_again(self):
        titles = {"1": "Toy Story", "2": "Toy Story", "3": "  "}
        first, second = TitleCards(titles), TitleCards(titles)
        assert isinstance(first, ImageSource)
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(first.read, ["1"] * 20)) == {second.read("1")}
        assert first.read("1") != first.read("2")
        assert list(first.names()) == ["1", "2"]
        assert not first.has("3")
        assert decode_image(first.read("1"), "1").size == (182, 268)

    def test_title_is_drawn_inside_the_frame(self):
        for title in (
            "A",
            "Supercalifragilisticexpialidocious" * 3,
            "many words " * 100,
            "שלום \U0001f600",
            "a\x00b\nc",
        ):
            pixels = np.asarray(decode_image(TitleCards({"1": title}).read("1"), title))
            assert (pixels[8:-8, 8:-8] == 255).all(-1).any()
            assert not (pixels[8:-8, -10:-6] == 255).all(-1).any()

    def test_other_titles_other_cards(self):
        assert TitleCards({"1": "Alien"}).read("1") != TitleCards({"1": "Aliens"}).read("1")

    def test_no_title(self):
        with pytest.raises(ImageError, match="item 5: no title"):
            TitleCards({}).read("5")
