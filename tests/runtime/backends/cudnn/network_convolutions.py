"""Every convolution of the full-size networks, literally, with padded channels."""

from collections.abc import Iterator

from saishiki.runtime.backends.cudnn.convolution import Convolution

# Size, channels in and out, kernel, whether a residual is added, and how many there are.
_ANIMEDIFFUSION = (
    (256, 7, 64, 1, False, 1),
    (256, 64, 64, 3, False, 2),
    (256, 64, 64, 3, True, 4),
    (256, 128, 64, 1, False, 1),
    (256, 128, 64, 3, False, 1),
    (256, 192, 64, 1, False, 1),
    (256, 192, 64, 3, False, 1),
    (256, 64, 3, 1, False, 1),
    (128, 64, 128, 1, False, 1),
    (128, 64, 128, 3, False, 1),
    (128, 128, 128, 3, False, 1),
    (128, 128, 128, 3, True, 5),
    (128, 192, 128, 1, False, 1),
    (128, 192, 128, 3, False, 1),
    (128, 256, 128, 1, False, 1),
    (128, 256, 128, 3, False, 1),
    (128, 384, 128, 1, False, 1),
    (128, 384, 128, 3, False, 1),
    (64, 128, 256, 1, False, 1),
    (64, 128, 256, 3, False, 1),
    (64, 256, 256, 3, False, 1),
    (64, 256, 256, 3, True, 5),
    (64, 384, 256, 1, False, 1),
    (64, 384, 256, 3, False, 1),
    (64, 512, 256, 1, False, 1),
    (64, 512, 256, 3, False, 1),
    (64, 768, 256, 1, False, 1),
    (64, 768, 256, 3, False, 1),
    (32, 256, 512, 1, False, 1),
    (32, 256, 512, 3, False, 1),
    (32, 512, 512, 3, False, 3),
    (32, 512, 512, 3, True, 7),
    (32, 512, 1536, 1, False, 1),
    (32, 768, 512, 1, False, 1),
    (32, 768, 512, 3, False, 1),
    (32, 1024, 512, 1, False, 2),
    (32, 1024, 512, 3, False, 2),
)

# Size, channels in and out, of those with 3x3 filters; Stable Diffusion 2.1 at 512x512.
_SD_UNET = (
    *((64, *io) for io in ((4, 320), (320, 320), (640, 320), (960, 320), (640, 640), (320, 4))),
    *((32, *io) for io in ((320, 640), (640, 640), (960, 640), (1280, 640), (1920, 640), (1280, 1280))),
    *((16, *io) for io in ((640, 1280), (1280, 1280), (1920, 1280), (2560, 1280))),
    *((8, *io) for io in ((1280, 1280), (2560, 1280))),
)
_SD_VAE = (
    *((512, *io) for io in ((3, 128), (128, 128), (256, 128), (256, 256), (128, 3))),
    *((256, *io) for io in ((128, 256), (256, 256), (512, 256), (512, 512))),
    *((128, *io) for io in ((256, 512), (512, 512))),
    *((64, *io) for io in ((4, 512), (512, 512), (512, 8))),
)


def animediffusion() -> list[Convolution]:
    """The 59 of the U-Net at 256x256, batch 1."""
    return [
        square(size, channels, filters, kernel, residual=residual)
        for size, channels, filters, kernel, residual, count in _ANIMEDIFFUSION
        for _ in range(count)
    ]


def stable_diffusion() -> list[Convolution]:
    """Those of the U-Net for guidance (batch 2) and of the autoencoder (batch 1), each shape with what may be added."""
    return list(dict.fromkeys([*_unet(batch=2), *_autoencoder()]))


def _unet(batch: int) -> Iterator[Convolution]:
    for size, channels, filters in _SD_UNET:
        yield square(size, channels, filters, 3, batch=batch)
        if channels == filters:
            yield square(size, channels, filters, 3, batch=batch, residual=True)
        elif channels != 4 and filters != 4:
            yield square(size, channels, filters, 1, batch=batch)  # the skip connection
    for size, channels in ((64, 320), (32, 640), (16, 1280)):
        yield Convolution(batch, size, size, channels, channels, (3, 3), 2, (1, 1, 1, 1))
        yield square(size, channels, channels, 1, batch=batch)  # into the transformer
        yield square(size, channels, channels, 1, batch=batch, residual=True)  # and out of it


def _autoencoder() -> Iterator[Convolution]:
    for size, channels, filters in _SD_VAE:
        yield square(size, channels, filters, 3)
        if channels == filters:
            yield square(size, channels, filters, 3, residual=True)
    for size, channels in ((512, 128), (256, 256), (128, 512)):
        yield Convolution(1, size, size, channels, channels, (3, 3), 2, (0, 0, 1, 1))


def square(
    size: int, channels: int, filters: int, kernel: int, *, batch: int = 1, residual: bool = False
) -> Convolution:
    """A convolution that keeps the size of a square picture."""
    around = kernel // 2
    padded = (-(-count // 8) * 8 for count in (channels, filters))
    return Convolution(batch, size, size, *padded, (kernel, kernel), 1, (around,) * 4, residual)
