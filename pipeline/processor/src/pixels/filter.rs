//! The resampling kernels, by Pillow's names. torchvision's bilinear, bicubic and Lanczos kernels are the same functions.

/// How a resize weighs its inputs. The names and numbers are Pillow's (`PIL.Image.Resampling`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Filter {
    /// 0: the nearest sample.
    Nearest,
    /// 1: sinc windowed by sinc, three lobes.
    Lanczos,
    /// 2: triangle.
    Bilinear,
    /// 3: cubic convolution with a = -0.5.
    Bicubic,
    /// 4: mean of the samples covered.
    Box,
    /// 5: sinc windowed by Hamming's cosine.
    Hamming,
}

impl Filter {
    /// The filter of a `resample` setting.
    pub(crate) fn from_code(code: u64) -> Option<Self> {
        [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming]
            .get(usize::try_from(code).ok()?)
            .copied()
    }

    /// Half the kernel's width at scale 1.
    pub(super) fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The kernel's value at distance `x`.
    pub(super) fn weight(self, x: f64) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => bicubic(x.abs()),
            Self::Hamming => hamming(x.abs()),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn hamming(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    let angle = x * std::f64::consts::PI;
    angle.sin() / angle * (0.54 + 0.46 * angle.cos())
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let angle = x * std::f64::consts::PI;
    angle.sin() / angle
}
