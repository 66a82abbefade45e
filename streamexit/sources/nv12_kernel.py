"""The CUDA kernel that turns a decoder's NV12 picture into the network's input, in one pass.

It says the same as `preprocessing.InputConverter`: each plane is averaged over the box that an
output pixel covers, as swscale does, then the same colour matrix is applied. What it writes is uint8
on purpose. Normalisation stays the first operation of the network: one place that normalises, and a
quarter of the bytes.

The source is CUDA for NVRTC and, but for the names of CUDA, C++: the tests run it on a CPU.
"""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from streamexit.preprocessing import Preprocessing, colour_matrix, is_full_range

KERNEL = "nv12_to_rgb"

BLOCK = (32, 8)
"""Threads, across and down: a warp writes 32 neighbouring pixels."""

LEFT_SITING = 0.25
"""How far left-sited chroma samples lie left of the middle between their two luma samples, in chroma
samples (ITU-T H.273, chroma sample location 0 against 1)."""

_SIZES = ("pitch", "chroma_pitch", "width", "height", "columns", "rows")
_PLACE = ("scaled_width", "scaled_height", "left", "top")
JOB = np.dtype(
    [*((name, "i4") for name in _SIZES + _PLACE), ("siting", "f4"), ("matrix", "f4", (3, 4))]
)
"""`struct Job` of the source; every member is four bytes wide, so there is no padding."""

SOURCE = r"""
typedef unsigned char u8;

struct Job {
    int pitch, chroma_pitch;          /* bytes from row to row */
    int width, height;                /* of the picture */
    int columns, rows;                /* of the input */
    int scaled_width, scaled_height;  /* of the whole picture, scaled */
    int left, top;                    /* in it, of the input's first pixel; below 0 in black */
    float siting;                     /* of chroma samples, to the left, in chroma samples */
    float matrix[3][4];               /* from Y, U, V and 1 to R, G, B */
};

struct Channel { const u8 *samples; int pitch, step, columns, rows; };

/* Around (x, y), in samples; the first sample lies at (0.5, 0.5). */
struct Box { float x, y, width, height; };

__device__ int clamped(int index, int count)
{
    return index < 0 ? 0 : index < count ? index : count - 1;
}

/* The part of the sample at `index` that lies in a box no smaller than a sample. */
__device__ float covered(int index, float centre, float size)
{
    return fminf(fmaxf(0.5f * (size + 1.0f) - fabsf(index + 0.5f - centre), 0.0f), 1.0f);
}

/* The mean of a channel in a box, rounded to 8 bits as between swscale and the matrix. */
__device__ float mean(Channel of, Box box)
{
    int first_row = (int)floorf(box.y - 0.5f * box.height);
    int first_column = (int)floorf(box.x - 0.5f * box.width);
    float sum = 0.0f;
    for (int row = first_row; row < box.y + 0.5f * box.height; ++row) {
        const u8 *samples = of.samples + (long long)of.pitch * clamped(row, of.rows);
        float of_row = 0.0f;
        for (int column = first_column; column < box.x + 0.5f * box.width; ++column)
            of_row += covered(column, box.x, box.width)
                * samples[of.step * clamped(column, of.columns)];
        sum += covered(row, box.y, box.height) * of_row;
    }
    return rintf(sum / (box.width * box.height));
}

/* The mean of what a pixel of the scaled picture covers. When enlarging, a box as large as a sample
   interpolates between neighbours. */
__device__ float scaled(Channel of, Job job, int x, int y, float shift)
{
    float across = (float)of.columns / job.scaled_width, down = (float)of.rows / job.scaled_height;
    Box box = {(x + 0.5f) * across + shift, (y + 0.5f) * down, fmaxf(across, 1.0f), fmaxf(down, 1.0f)};
    return mean(of, box);
}

extern "C" __global__ void nv12_to_rgb(const u8 *luma, const u8 *chroma, u8 *rgb, Job job)
{
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (column >= job.columns || row >= job.rows)
        return;
    u8 *pixel = rgb + 3 * ((long long)row * job.columns + column);
    int x = column + job.left, y = row + job.top;
    if (x < 0 || x >= job.scaled_width || y < 0 || y >= job.scaled_height) {
        pixel[0] = pixel[1] = pixel[2] = 0;
        return;
    }
    int half_width = (job.width + 1) / 2, half_height = (job.height + 1) / 2;
    Channel light = {luma, job.pitch, 1, job.width, job.height};
    Channel blue = {chroma, job.chroma_pitch, 2, half_width, half_height};
    Channel red = {chroma + 1, job.chroma_pitch, 2, half_width, half_height};
    float yuv[3] = {
        scaled(light, job, x, y, 0.0f),
        scaled(blue, job, x, y, job.siting),
        scaled(red, job, x, y, job.siting),
    };
    for (int c = 0; c < 3; ++c) {
        const float *m = job.matrix[c];
        float value = m[0] * yuv[0] + m[1] * yuv[1] + m[2] * yuv[2] + m[3];
        pixel[c] = (u8)rintf(fminf(fmaxf(value, 0.0f), 255.0f));
    }
}
"""


def job_for(
    picture: VideoFrame,
    preprocessing: Preprocessing,
    *,
    left_sited: bool,
    size: tuple[int, int] | None = None,
) -> NDArray[np.void]:
    """What the kernel must know of an NV12 picture and of its place in the input.

    Args:
        picture: In host or device memory: only its header is read.
        preprocessing: Of the pipeline.
        left_sited: Whether chroma samples lie on the left one of their two luma samples. swscale
            takes them to lie between, unless the picture says otherwise.
        size: As for `InputConverter`.

    Returns:
        `JOB` [1], which CuPy passes by value.
    """
    p, own_size = preprocessing, (picture.width, picture.height)
    shown_size = size or own_size
    of_input, of_picture = p.overlap(*shown_size)
    top, left = (there.start - here.start for here, there in zip(of_input, of_picture, strict=True))
    sizes = (*(plane.line_size for plane in picture.planes), *own_size, p.width, p.height)
    siting = LEFT_SITING if left_sited else 0
    matrix = colour_matrix(picture.colorspace, full_range=is_full_range(picture))
    return np.array([(*sizes, *p.scaled_size(*shown_size), left, top, siting, matrix)], JOB)


def grid_for(preprocessing: Preprocessing) -> tuple[int, int]:
    """Blocks, across and down, that cover the input."""
    return -(-preprocessing.width // BLOCK[0]), -(-preprocessing.height // BLOCK[1])
