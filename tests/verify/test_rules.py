"""Every rewriting of the normal form: networks that it makes one compute the same, near ones not.

Each case is a few networks: the first two are one network in two ways to be written, the others
are those that a careless rule would take for it.
"""

import numpy as np
import pytest
from networks_as_text import check_rule, network

RNG = np.random.default_rng(0)


def _weights():
    found = {
        "w": RNG.normal(size=(6, 4, 3, 3)),
        "bias6": RNG.normal(size=6),
        "w11": RNG.normal(size=(4, 4, 1, 1)),
        "m8": RNG.normal(size=(8, 5)),
        "c5": RNG.normal(size=5),
        "v8": RNG.normal(size=8),
        "g8": RNG.normal(size=8),
        "g64": RNG.normal(size=64),
        "row4": RNG.normal(size=4),
        "gamma": RNG.uniform(0.5, 2, 4),
        "beta": RNG.normal(size=4),
        "mean": RNG.normal(size=4),
        "var": RNG.uniform(0.5, 2, 4),
        "root2": np.float64(2**0.5),
        "bend": np.float64((2 / np.pi) ** 0.5),
        "eps": np.float64(np.float32(1e-5)),
    }
    scale = found["gamma"] / np.sqrt(found["var"] + found["eps"])
    shift = found["beta"] - scale * found["mean"]
    return found | {
        "m8t": found["m8"].T,
        "m8x2": 2 * found["m8"],
        "bias6c": found["bias6"].reshape(6, 1, 1),
        "row4r": found["row4"][::-1].copy(),
        "c4": found["row4"].reshape(4, 1, 1),
        "c4half": found["row4"].reshape(4, 1, 1) / 2,
        "bnscale": scale.reshape(4, 1, 1),
        "bnshift": shift.reshape(4, 1, 1),
        "w11bn": found["w11"] * scale.reshape(4, 1, 1, 1),
        "bias4": shift,
    }


WEIGHTS = _weights()
P = "p = GlobalAveragePool(x) "
E = "e = Exp(x) "
AB = "a = Relu(x) b = Abs(x) "
NHWC = "Transpose<perm=[0, 2, 3, 1]>"
NORM = (
    "m = ReduceMean(x, %[-1]) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, %[-1]) e = Add(v, {})"
    " r = Sqrt(e) n = Div(d, r) s = Mul(n, g8) y = Add(s, v8)"
)
ROWS = "r = Reshape(x, %[-1, 8]) "
INTEGERS = "h = Mul(x, $4.0) i = Cast<to=7>(h) "
GROUPS = (
    "r = Reshape(x, %[0, 2, -1]) m = ReduceMean(r, %[2]) d = Sub(r, m) q = Mul(d, d)"
    " v = ReduceMean(q, %[2]) e = Add(v, eps) s = Sqrt(e) o = Div(d, s)"
    " n = Reshape(o, %[0, 4, 8, 8]) g = Reshape(gamma, %[4, 1, 1]) h = Reshape(beta, %[4, 1, 1])"
    " z = Mul(n, g) "
)
RESIZE = 'y = Resize<mode="nearest", coordinate_transformation_mode="{}", nearest_mode="{}">({})'
LINEAR = 'y = Resize<mode="linear", coordinate_transformation_mode="{}">({})'

CASES = {
    "identity and dropout": (
        "h = Relu(x) y = Conv(h, w)",
        "i = Identity(x) h = Relu(i) d = Dropout(h) y = Conv(d, w)",
        "y = Conv(x, w)",
    ),
    "defaults stated": (
        "y = Conv(x, w, bias6)",
        "y = Conv<strides=[1,1], pads=[0,0,0,0], dilations=[1,1], group=1>(x, w, bias6)",
        "y = Conv<strides=[2,2], dilations=[1,1], group=1>(x, w, bias6)",
    ),
    "scales and shifts in a row": (
        "a = Mul(x, $2.0) y = Add(a, c4)",
        "a = Add(x, c4half) y = Mul($2.0, a)",
        "a = Add(x, c4) y = Mul(a, $2.0)",
    ),
    "a batchnorm alone": (
        "y = BatchNormalization(x, gamma, beta, mean, var)",
        "s = Mul(x, bnscale) y = Add(s, bnshift)",
        "s = Add(x, bnshift) y = Mul(s, bnscale)",
    ),
    "a batchnorm folded": (
        "h = Conv(x, w11) y = BatchNormalization(h, gamma, beta, mean, var)",
        "y = Conv(x, w11bn, bias4)",
        "h = BatchNormalization(x, gamma, beta, mean, var) y = Conv(h, w11)",
    ),
    "division by a number": ("y = Div(x, $4.0)", "y = Mul(x, $0.25)", "y = Div($4.0, x)"),
    "a negative": ("y = Neg(x)", "y = Sub($0.0, x)", "y = Sub(x, $0.0)"),
    "mean of two": (
        AB + "y = Mean(a, b)",
        AB + "s = Add(b, a) y = Div(s, $2.0)",
        AB + "y = Sum(a, b)",
    ),
    "a bound within bounds": (
        "a = Clip(x, $-1.0, $2.0) y = Clip(a, $0.0, $3.0)",
        "y = Clip(x, $0.0, $2.0)",
        "y = Clip(x, $-1.0, $2.0)",
    ),
    "bounds apart": (
        "a = Clip(x, $0.5, $2.0) y = Clip(a, $-3.0, $-1.0)",
        "y = Clip(x, $-1.0, $-1.0)",
        "y = Clip(x, $0.5, $0.5)",
    ),
    "relu6": (
        "y = Clip(x, $0.0, $6.0)",
        "r = Relu(x) y = Min(r, $6.0)",
        "r = Relu(x) y = Max(r, $6.0)",
    ),
    "an open bound": (
        "y = Clip(x, $-100.0, $0.5)",
        "m = Max(x, $-100.0) y = Min(m, $0.5)",
        "y = Clip(x, $0.0, $0.5)",
    ),
    "no lower bound": ("y = Clip(x, , $0.5)", "y = Min(x, $0.5)", "y = Clip(x, $0.0, $0.5)"),
    "clip of a scaled value": (
        "a = Mul(x, $2.0) y = Clip(a, $-1.0, $2.0)",
        "a = Clip(x, $-0.5, $1.0) y = Mul(a, $2.0)",
        "a = Clip(x, $-1.0, $2.0) y = Mul(a, $2.0)",
    ),
    "clip of a negative": (
        "a = Mul(x, $-2.0) y = Clip(a, $-1.0, $2.0)",
        "a = Clip(x, $-1.0, $0.5) y = Mul(a, $-2.0)",
        "a = Clip(x, $-0.5, $1.0) y = Mul(a, $-2.0)",
    ),
    "hard sigmoid": (
        "y = HardSigmoid<alpha=0.25, beta=0.5>(x)",
        "a = Mul(x, $0.25) s = Add(a, $0.5) y = Clip(s, $0.0, $1.0)",
        "y = HardSigmoid<alpha=0.25, beta=0.25>(x)",
    ),
    "hard swish": (
        "y = HardSwish(x)",
        "a = Add(x, $3.0) c = Clip(a, $0.0, $6.0) d = Div(c, $6.0) y = Mul(x, d)",
        "a = Add(x, $3.0) c = Clip(a, $0.0, $5.0) d = Div(c, $6.0) y = Mul(x, d)",
    ),
    "leaky relu": ("y = LeakyRelu<alpha=0.125>(x)", "y = PRelu(x, $0.125)", "y = PRelu(x, $0.25)"),
    "prelu by channel": (
        "y = PRelu(x, c4)",
        "z = Mul(c4, $1.0) y = PRelu(x, z)",
        "y = PRelu(x, c4half)",
    ),
    "prelu of zero": ("y = Relu(x)", "y = PRelu(x, $0.0)", "y = PRelu(x, $1.0)"),
    "gelu": (
        "y = Gelu(x)",
        "d = Div(x, root2) e = Erf(d) f = Add(e, $1.0) g = Mul(x, f) y = Mul(g, $0.5)",
        'y = Gelu<approximate="tanh">(x)',
    ),
    "gelu by tanh": (
        'y = Gelu<approximate="tanh">(x)',
        (
            "c = Pow(x, $3.0) s = Mul(c, $0.044715) i = Add(x, s) k = Mul(i, bend) t = Tanh(k)"
            " p = Add(t, $1.0) h = Mul(x, $0.5) y = Mul(h, p)"
        ),
        (
            "c = Pow(x, $2.0) s = Mul(c, $0.044715) i = Add(x, s) k = Mul(i, bend) t = Tanh(k)"
            " p = Add(t, $1.0) h = Mul(x, $0.5) y = Mul(h, p)"
        ),
    ),
    "mish": (
        "y = Mish(x)",
        "s = Softplus(x) t = Tanh(s) y = Mul(t, x)",
        "s = Softplus(x) y = Mul(x, s)",
    ),
    "squares": ("y = Pow(x, $2.0)", "y = Mul(x, x)", "y = Pow(x, $3.0)"),
    "a root's reciprocal": (
        "a = Abs(x) y = Pow(a, $-0.5)",
        "a = Abs(x) s = Sqrt(a) y = Div($1.0, s)",
        "a = Abs(x) y = Reciprocal(a)",
    ),
    "division": (E + "y = Div(x, e)", E + "i = Reciprocal(e) y = Mul(i, x)", E + "y = Div(e, x)"),
    "reciprocal of a scaled value": (
        E + "s = Mul(e, $4.0) y = Reciprocal(s)",
        E + "r = Reciprocal(e) y = Mul(r, $0.25)",
        E + "r = Reciprocal(e) y = Mul(r, $4.0)",
    ),
    "sums in any order": (
        AB + "s = Add(a, b) y = Add(s, x)",
        AB + "s = Add(x, b) y = Add(a, s)",
        AB + "s = Sub(x, b) y = Add(a, s)",
    ),
    "a shift out of a sum": (
        AB + "s = Add(a, c4) y = Add(s, b)",
        AB + "s = Add(a, b) y = Add(c4, s)",
        AB + "s = Add(a, b) y = Sub(s, c4)",
    ),
    "a scale out of a product": (
        AB + "h = Mul(a, $2.0) y = Mul(h, b)",
        AB + "p = Mul(b, a) y = Mul(p, $2.0)",
        AB + "p = Mul(b, a) y = Mul(p, $4.0)",
    ),
    "a product is no sum": (
        AB + "t = Add(a, $1.0) y = Mul(t, b)",
        AB + "t = Add($1.0, a) y = Mul(b, t)",
        AB + "p = Mul(a, b) y = Add(p, $1.0)",
    ),
    "reshape of a reshape": (
        "r = Reshape(x, %[0, 4, 64]) y = Reshape(r, %[0, 2, 128])",
        "y = Reshape(x, %[-1, 2, 128])",
        "t = Transpose<perm=[0, 1, 3, 2]>(x) y = Reshape(t, %[0, 2, 128])",
    ),
    "transpositions that undo each other": (
        f"a = {NHWC}(x) r = Relu(a) y = Transpose<perm=[0, 3, 1, 2]>(r)",
        "y = Relu(x)",
        f"a = {NHWC}(x) r = Relu(a) y = Transpose<perm=[0, 3, 2, 1]>(r)",
    ),
    "transposed axes of size one": (
        P + f"y = {NHWC}(p)",
        P + "y = Reshape(p, %[0, 1, 1, 4])",
        f"m = GlobalMaxPool(x) y = {NHWC}(m)",
    ),
    "a function of each element": (
        "r = Reshape(x, %[0, -1]) y = Tanh(r)",
        "a = Tanh(x) y = Flatten(a)",
        "t = Transpose<perm=[0, 1, 3, 2]>(x) a = Tanh(t) y = Reshape(a, %[0, -1])",
    ),
    "constants through a transposition": (
        f"t = {NHWC}(x) y = Mul(t, row4)",
        f"m = Mul(x, c4) y = {NHWC}(m)",
        f"t = {NHWC}(x) y = Mul(t, row4r)",
    ),
    "flatten and squeeze": (
        P + "y = Flatten(p)",
        "y = ReduceMean<keepdims=0>(x, %[2, 3])",
        "y = ReduceMax<keepdims=0>(x, %[2, 3])",
    ),
    "unsqueeze": (
        P + "q = Squeeze(p, %[2, 3]) y = Unsqueeze(q, %[-1, 2])",
        P + "y = Identity(p)",
        P + "q = Squeeze(p, %[2, 3]) y = Unsqueeze(q, %[1, 2])",
    ),
    "a shape computed at run time": (
        P + "y = Flatten(p)",
        P + "s = Shape<end=1>(x) t = Concat<axis=0>(s, %[-1]) y = Reshape(p, t)",
        P + "s = Shape<start=1, end=2>(x) t = Concat<axis=0>(s, %[-1]) y = Reshape(p, t)",
    ),
    "a needless expand": (
        P + "e = Expand(p, %[1, 4, 8, 8]) y = Add(e, x)",
        P + "y = Add(x, p)",
        "e = GlobalMaxPool(x) y = Add(e, x)",
    ),
    "weights for each sample, joined": (
        (
            "s = Shape<end=1>(x) t = Concat<axis=0>(s, %[4, 1, 8]) k = Expand(c4, t) "
            "y = Concat<axis=2>(k, x)"
        ),
        (
            "s = Shape(x) n = Slice(s, %[0], %[1]) t = Concat<axis=0>(n, %[4, 1, 8]) "
            "k = Expand(c4, t) y = Concat<axis=-2>(k, x)"
        ),
        (
            "s = Shape<end=1>(x) t = Concat<axis=0>(s, %[4, 1, 8]) k = Expand(c4half, t) "
            "y = Concat<axis=2>(k, x)"
        ),
    ),
    "nested concatenations": (
        AB + "c = Concat<axis=1>(a, b) y = Concat<axis=1>(c, x)",
        AB + "y = Concat<axis=1>(a, b, x)",
        AB + "y = Concat<axis=1>(b, a, x)",
    ),
    "transposed concatenations": (
        AB + f"s = {NHWC}(a) t = {NHWC}(b) y = Concat<axis=3>(s, t)",
        AB + f"c = Concat<axis=1>(a, b) y = {NHWC}(c)",
        AB + f"s = {NHWC}(a) t = {NHWC}(b) y = Concat<axis=2>(s, t)",
    ),
    "a split": (
        "a, b = Split<axis=1, num_outputs=2>(x) y = Sub(a, b)",
        "a = Slice(x, %[0], %[2], %[1]) b = Slice(x, %[-2], %[99], %[1]) y = Sub(a, b)",
        "a = Slice(x, %[0], %[2], %[1]) b = Slice(x, %[1], %[3], %[1]) y = Sub(a, b)",
    ),
    "uneven parts": (
        "a, b = Split<axis=1>(x, %[1, 3]) y = Mul(a, b)",
        "b = Slice(x, %[1], %[4], %[1]) a = Slice(x, %[0], %[1], %[1]) y = Mul(a, b)",
        "a, b = Split<axis=1>(x, %[3, 1]) y = Mul(a, b)",
    ),
    "one index": (
        "y = Gather<axis=1>(x, %-2)",
        "s = Slice(x, %[2], %[3], %[1]) y = Squeeze(s, %[1])",
        "y = Gather<axis=1>(x, %1)",
    ),
    "indices in steps": (
        "y = Gather<axis=2>(x, %[1, 3, 5])",
        "y = Slice(x, %[1], %[6], %[2], %[2])",
        "y = Gather<axis=2>(x, %[1, 3, 6])",
    ),
    "slices of two axes": (
        "a = Slice(x, %[1], %[5], %[2]) y = Slice(a, %[0], %[8], %[3], %[2])",
        "y = Slice(x, %[0, 1], %[8, 5], %[3, 2], %[2, 1])",
        "y = Slice(x, %[0, 1], %[8, 5], %[2, 3], %[2, 1])",
    ),
    "a slice backwards": (
        "y = Slice(x, %[-1], %[-99], %[2], %[-1])",
        "y = Slice(x, %[7], %[-9], %[2], %[-1])",
        "y = Slice(x, %[0], %[8], %[2], %[1])",
    ),
    "two slices of one axis": (
        "a = Slice(x, %[1], %[7], %[2]) y = Slice(a, %[1], %[3], %[2])",
        "a = Slice(x, %[1], %[7], %[-2]) y = Slice(a, %[-5], %[3], %[2])",
        "y = Slice(x, %[1], %[3], %[2])",
    ),
    "depth to space": (
        "y = DepthToSpace<blocksize=2>(x)",
        (
            "a = Reshape(x, %[0, 2, 2, 1, 8, 8]) t = Transpose<perm=[0, 3, 4, 1, 5, 2]>(a)"
            " y = Reshape(t, %[-1, 1, 16, 16])"
        ),
        (
            "a = Reshape(x, %[0, 2, 2, 1, 8, 8]) t = Transpose<perm=[0, 3, 4, 2, 5, 1]>(a)"
            " y = Reshape(t, %[-1, 1, 16, 16])"
        ),
    ),
    "space to depth": (
        "y = SpaceToDepth<blocksize=2>(x)",
        (
            "a = Reshape(x, %[0, 4, 4, 2, 4, 2]) t = Transpose<perm=[0, 3, 5, 1, 2, 4]>(a)"
            " y = Reshape(t, %[-1, 16, 4, 4])"
        ),
        (
            "a = Reshape(x, %[0, 4, 4, 2, 4, 2]) t = Transpose<perm=[0, 5, 3, 1, 2, 4]>(a)"
            " y = Reshape(t, %[-1, 16, 4, 4])"
        ),
    ),
    "padding by axis": (
        "y = Pad(x, %[0, 1, 0, 0, 0, 2, 0, 0])",
        "y = Pad(x, %[1, 2], $0.0, %[-3])",
        "y = Pad(x, %[2, 1], $0.0, %[1])",
    ),
    "zeros before a convolution": (
        "y = Conv<pads=[1, 2, 1, 0]>(x, w)",
        "p = Pad(x, %[0, 0, 1, 2, 0, 0, 1, 0]) y = Conv(p, w)",
        "p = Pad(x, %[0, 0, 1, 2, 0, 0, 1, 0], $1.0) y = Conv(p, w)",
    ),
    "mirrored borders": (
        'p = Pad<mode="reflect">(x, %[0, 0, 1, 1, 0, 0, 1, 1]) y = Conv(p, w)',
        'p = Pad<mode="reflect">(x, %[1, 1, 1, 1], , %[2, 3]) y = Conv(p, w)',
        'p = Pad<mode="edge">(x, %[0, 0, 1, 1, 0, 0, 1, 1]) y = Conv(p, w)',
    ),
    "a channel's padding is no window's": (
        "p = Pad(x, %[0, 0, 0, 0, 0, 2, 0, 0]) y = SpaceToDepth<blocksize=2>(p)",
        "p = Pad(x, %[0, 2], $0.0, %[1]) y = SpaceToDepth<blocksize=2>(p)",
        "p = Pad(x, %[1, 1], $0.0, %[1]) y = SpaceToDepth<blocksize=2>(p)",
    ),
    "automatic padding": (
        'y = Conv<auto_pad="SAME_UPPER", strides=[2, 2]>(x, w)',
        "y = Conv<pads=[0, 0, 1, 1], strides=[2, 2]>(x, w)",
        'y = Conv<auto_pad="SAME_LOWER", strides=[2, 2]>(x, w)',
    ),
    "no padding": (
        'y = Conv<auto_pad="VALID">(x, w)',
        "y = Conv(x, w)",
        "y = Conv<dilations=[2, 2]>(x, w)",
    ),
    "a window that is the map": (
        "y = AveragePool<kernel_shape=[8, 8]>(x)",
        "y = GlobalAveragePool(x)",
        "y = GlobalMaxPool(x)",
    ),
    "ceil mode of whole windows": (
        "y = MaxPool<kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1>(x)",
        "y = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x)",
        "y = MaxPool<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1>(x)",
    ),
    "ceil mode": (
        "y = MaxPool<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1>(x)",
        "y = MaxPool<ceil_mode=1, kernel_shape=[3, 3], strides=[2, 2], dilations=[1, 1]>(x)",
        "y = MaxPool<kernel_shape=[3, 3], strides=[2, 2]>(x)",
    ),
    "counted padding": (
        "y = AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1>(x)",
        "p = Pad(x, %[1, 1, 1, 1], $0.0, %[2, 3]) y = AveragePool<kernel_shape=[3, 3]>(p)",
        "y = AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x)",
    ),
    "a maximum's padding": (
        "y = MaxPool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x)",
        'y = MaxPool<kernel_shape=[3, 3], auto_pad="SAME_UPPER">(x)',
        "p = Pad(x, %[1, 1, 1, 1], $0.0, %[2, 3]) y = MaxPool<kernel_shape=[3, 3]>(p)",
    ),
    "nested means": (
        "a = ReduceMean(x, %[2]) y = ReduceMean(a, %[3])",
        "y = ReduceMean(x, %[-1, 2])",
        "a = ReduceMean(x, %[2]) y = ReduceMax(a, %[3])",
    ),
    "nested norms": (
        "a = ReduceL2(x, %[2]) y = ReduceL2(a, %[3])",
        "a = ReduceL2(x, %[-2]) y = ReduceL2(a, %[-1])",
        "a = ReduceL1(x, %[2]) y = ReduceL2(a, %[3])",
    ),
    "a reduction of a transposed value": (
        f"t = {NHWC}(x) y = ReduceSum<keepdims=0>(t, %[3])",
        "y = ReduceSum<keepdims=0>(x, %[1])",
        f"t = {NHWC}(x) y = ReduceSum<keepdims=0>(t, %[1])",
    ),
    "softmax of a transposed value": (
        f"t = {NHWC}(x) s = Softmax(t) y = Transpose<perm=[0, 3, 1, 2]>(s)",
        "y = Softmax<axis=1>(x)",
        "y = Softmax<axis=2>(x)",
    ),
    "layer normalization": (
        "y = LayerNormalization(x, g8, v8)",
        NORM.format("eps"),
        NORM.format("$0.01"),
    ),
    "a mean of squares is no variance": (
        NORM.format("$0.5"),
        NORM.format("$0.5").replace("Mul(d, d)", "Pow(d, $2.0)"),
        NORM.format("$0.5").replace("Mul(d, d)", "Mul(x, x)"),
    ),
    "instance normalization": (
        "y = InstanceNormalization(x, gamma, beta)",
        (
            "m = ReduceMean(x, %[2, 3]) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, %[2, 3])"
            " e = Add(v, eps) s = Sqrt(e) n = Div(d, s) g = Reshape(gamma, %[4, 1, 1])"
            " h = Reshape(beta, %[4, 1, 1]) z = Mul(n, g) y = Add(z, h)"
        ),
        "y = InstanceNormalization<epsilon=0.01>(x, gamma, beta)",
    ),
    "nearest by two": (
        RESIZE.format("asymmetric", "floor", "x, , $[1.0, 1.0, 2.0, 2.0]"),
        RESIZE.format("half_pixel", "round_prefer_floor", "x, , , %[1, 4, 16, 16]")
        .replace("y = ", "s = Shape<end=1>(x) t = Concat<axis=0>(s, %[4, 16, 16]) y = ")
        .replace("%[1, 4, 16, 16])", "t)"),
        RESIZE.format("asymmetric", "ceil", "x, , $[1.0, 1.0, 2.0, 2.0]"),
    ),
    "linear by two": (
        LINEAR.format("half_pixel", "x, , $[1.0, 1.0, 2.0, 2.0]"),
        LINEAR.format("pytorch_half_pixel", "x, , $[1.0, 1.0, 2.0, 2.0]"),
        LINEAR.format("align_corners", "x, , $[1.0, 1.0, 2.0, 2.0]"),
    ),
    "a scaled matrix product": (
        "t = Transpose<perm=[0, 1, 3, 2]>(x) s = MatMul(x, t) y = Mul(s, $0.25)",
        "h = Mul(x, $0.25) t = Transpose<perm=[0, 1, 3, 2]>(x) y = MatMul(h, t)",
        "h = Mul(x, $0.25) t = Transpose<perm=[0, 1, 3, 2]>(h) y = MatMul(h, t)",
    ),
    "operands of a matrix product": (
        "a = Relu(x) y = MatMul(a, x)",
        "a = Relu(x) i = Identity(x) y = MatMul(a, i)",
        "a = Relu(x) y = MatMul(x, a)",
    ),
    "gemm and matmul": (
        "r = Reshape(x, %[-1, 8]) y = Gemm(r, m8, c5)",
        "r = Reshape(x, %[-1, 8]) h = MatMul(r, m8) y = Add(c5, h)",
        "r = Reshape(x, %[-1, 8]) h = MatMul(r, m8) y = Sub(h, c5)",
    ),
    "gemm transposed": (
        "r = Reshape(x, %[-1, 8]) y = Gemm<alpha=2.0, beta=0.5>(r, m8, c5)",
        "r = Reshape(x, %[-1, 8]) h = MatMul(r, m8x2) d = Mul(c5, $0.5) y = Add(h, d)",
        "r = Reshape(x, %[-1, 8]) y = Gemm<transB=1, alpha=1.0, beta=0.5>(r, m8t, c5)",
    ),
    "a product over the last axis": (
        "r = Reshape(x, %[-1, 8]) h = MatMul(r, m8) y = Reshape(h, %[-1, 4, 8, 5])",
        "y = MatMul(x, m8)",
        "t = Transpose<perm=[0, 1, 3, 2]>(x) y = MatMul(t, m8)",
    ),
    "letters of an einsum": (
        'y = Einsum<equation="nchw,wk->nchk">(x, m8)',
        'y = Einsum<equation="abcd,de->abce">(x, m8)',
        'y = Einsum<equation="nchw,hk->ncwk">(x, m8)',
    ),
    "softplus beyond a threshold": (
        "s = Softplus(x) t = Greater(x, $20.0) y = Where(t, x, s)",
        "y = Softplus(x)",
        "s = Softplus(x) t = Greater(x, $1.0) y = Where(t, x, s)",
    ),
    "a slice of a transposed value": (
        f"t = {NHWC}(x) y = Slice(t, %[1], %[3], %[3])",
        f"s = Slice(x, %[1], %[3], %[1]) y = {NHWC}(s)",
        f"t = {NHWC}(x) y = Slice(t, %[1], %[3], %[2])",
    ),
    "a transposition within blocks": (
        "r = Reshape(x, %[0, 2, 2, 8, 8]) y = Transpose<perm=[0, 3, 4, 1, 2]>(r)",
        f"t = {NHWC}(x) y = Reshape(t, %[0, 8, 8, 2, 2])",
        "r = Reshape(x, %[0, 2, 2, 8, 8]) y = Transpose<perm=[0, 3, 4, 2, 1]>(r)",
    ),
    "elu": (
        "y = Elu<alpha=0.5>(x)",
        "n = Min(x, $0.0) e = Exp(n) d = Sub(e, $1.0) h = Mul(d, $0.5) p = Relu(x) y = Add(h, p)",
        "n = Min(x, $0.0) e = Exp(n) d = Sub(e, $1.0) h = Mul(d, $0.25) p = Relu(x) y = Add(h, p)",
    ),
    "celu": (
        "y = Celu<alpha=0.5>(x)",
        (
            "n = Min(x, $0.0) m = Mul(n, $2.0) e = Exp(m) d = Sub(e, $1.0) h = Mul(d, $0.5)"
            " p = Max(x, $0.0) y = Add(p, h)"
        ),
        "y = Elu<alpha=0.5>(x)",
    ),
    "a sequence of parts": (
        (
            "q = SplitToSequence<axis=1>(x, %2) a = SequenceAt(q, %1) b = SequenceAt(q, %0)"
            " y = Sub(a, b)"
        ),
        "b, a = Split<axis=1, num_outputs=2>(x) y = Sub(a, b)",
        (
            "q = SplitToSequence<axis=1>(x, %2) a = SequenceAt(q, %1) b = SequenceAt(q, %0)"
            " y = Sub(b, a)"
        ),
    ),
    "a bias apart": (
        "h = Conv(x, w) y = Add(h, bias6c)",
        "y = Conv(x, w, bias6)",
        "h = Conv(x, w) y = Add(h, bias6)",
    ),
    "more axes by broadcasting": (
        "f = Flatten(x) c = Max(f, row256) y = Softmax<axis=-1>(c)",
        "f = Reshape(x, %[0, -1]) c = Max(f, row256) y = Softmax<axis=1>(c)",
        "f = Flatten(x) c = Max(f, row256) y = Softmax<axis=0>(c)",
    ),
    "rank from a constant of ones": (
        "f = Flatten(x) c = Where(yes, f, $0.0) s = Softmax<axis=1>(c) y = Reshape(s, %[-1])",
        "f = Flatten(x) c = Where(yes, f, $0.0) s = Softmax<axis=-1>(c) y = Reshape(s, %[-1])",
        "f = Flatten(x) c = Where(yes, f, nought) s = Softmax<axis=1>(c) y = Reshape(s, %[-1])",
    ),
    "a scale of moved values": (
        f"t = {NHWC}(x) y = Mul(t, $2.0)",
        f"h = Mul(x, $2.0) y = {NHWC}(h)",
        f"t = {NHWC}(x) y = Mul(t, $3.0)",
    ),
    "a scale of reshaped values": (
        "f = Flatten(x) h = Mul(f, $2.0) y = Add(h, $0.5)",
        "h = Mul(x, $2.0) s = Add($0.5, h) y = Flatten(s)",
        "f = Flatten(x) h = Mul(f, $0.5) y = Add(h, $2.0)",
    ),
    "a leak of moved values": (
        f"t = {NHWC}(x) y = LeakyRelu<alpha=0.5>(t)",
        f"h = LeakyRelu<alpha=0.5>(x) y = {NHWC}(h)",
        f"t = {NHWC}(x) y = LeakyRelu<alpha=0.25>(t)",
    ),
    "equal numbers are one": ("y = Add(x, halves)", "y = Add(x, $0.5)", "y = Add(x, c4half)"),
    "a bias of every row": (
        "h = MatMul(x, m8) y = Add(h, c5)",
        "r = Reshape(x, %[-1, 8]) g = Gemm(r, m8, c5) y = Reshape(g, %[-1, 4, 8, 5])",
        "y = MatMul(x, m8)",
        "h = MatMul(x, m8) y = Sub(h, c5)",
    ),
    "a bias of two": (
        "h = MatMul(x, m82) y = Add(h, c2)",
        "r = Reshape(x, %[-1, 8]) g = Gemm(r, m82, c2) y = Reshape(g, %[-1, 4, 8, 2])",
        "h = MatMul(x, m82) y = Sub(h, c2)",
    ),
    "two constants along a row are no bias": (
        "h = Conv(x, w77) y = Add(h, c2)",
        "h = Conv(x, w77) y = Add(c2, h)",
        "h = Conv(x, w77) y = Add(h, c2r)",
    ),
    "a reciprocal of a reciprocal": (
        E + "i = Reciprocal(e) s = Mul(i, $2.0) y = Reciprocal(s)",
        E + "y = Mul(e, $0.5)",
        E + "y = Mul(e, $2.0)",
    ),
    "sums of moved values": (
        AB + f"s = {NHWC}(a) t = {NHWC}(b) y = Add(s, t)",
        AB + f"c = Add(b, a) y = {NHWC}(c)",
        AB + f"s = {NHWC}(a) t = Transpose<perm=[0, 3, 2, 1]>(b) y = Add(s, t)",
    ),
    "products of moved values": (
        AB + f"s = {NHWC}(a) t = {NHWC}(b) y = Mul(s, t)",
        AB + f"c = Mul(b, a) y = {NHWC}(c)",
        AB + f"s = {NHWC}(a) t = Transpose<perm=[0, 3, 2, 1]>(b) y = Mul(s, t)",
    ),
    "sums of reshaped values": (
        AB + "s = Flatten(a) t = Flatten(b) y = Add(s, t)",
        AB + "c = Add(a, b) y = Flatten(c)",
        AB + f"s = Flatten(a) q = {NHWC}(b) t = Flatten(q) y = Add(s, t)",
    ),
    "products in any order": (
        AB + "p = Mul(a, b) y = Mul(p, x)",
        AB + "p = Mul(x, b) y = Mul(a, p)",
        AB + "p = Mul(x, b) y = Mul(p, b)",
    ),
    "a scale before a shift in a product": (
        AB + "h = Mul(a, $2.0) k = Add(h, c4) y = Mul(k, b)",
        AB + "k = Add(a, c4half) p = Mul(b, k) y = Mul(p, $2.0)",
        AB + "k = Add(a, c4) p = Mul(b, k) y = Mul(p, $2.0)",
    ),
    "scales before a shift in a product": (
        AB + "h = Mul(a, c4) k = Add(h, $1.0) y = Mul(k, b)",
        AB + "h = Mul(c4, a) k = Add($1.0, h) y = Mul(b, k)",
        AB + "h = Mul(a, c4) k = Add(h, $2.0) y = Mul(k, b)",
    ),
    "a needless expand in a product": (
        P + "e = Expand(p, %[1, 4, 8, 8]) y = Mul(x, e)",
        P + "y = Mul(p, x)",
        "e = GlobalMaxPool(x) y = Mul(e, x)",
    ),
    "an axis of size one in a transposition": (
        "r = Reshape(x, %[0, 1, 4, 8, 8]) y = Transpose<perm=[0, 1, 3, 4, 2]>(r)",
        f"t = {NHWC}(x) y = Reshape(t, %[0, 1, 8, 8, 4])",
        "r = Reshape(x, %[0, 1, 4, 8, 8]) y = Transpose<perm=[0, 1, 4, 3, 2]>(r)",
    ),
    "selu": (
        "y = Selu<alpha=0.5, gamma=2.0>(x)",
        "e = Elu<alpha=0.5>(x) y = Mul(e, $2.0)",
        "y = Selu<alpha=0.5, gamma=1.0>(x)",
        "y = Elu<alpha=0.5>(x)",
    ),
    "a threshold": (
        "y = ThresholdedRelu<alpha=1.0>(x)",
        "y = ThresholdedRelu(x)",
        "y = ThresholdedRelu<alpha=0.5>(x)",
        "y = Relu(x)",
    ),
    "roots": (
        "a = Abs(x) y = Pow(a, $0.5)",
        "a = Abs(x) y = Sqrt(a)",
        "a = Abs(x) y = Pow(a, $0.25)",
    ),
    "whole powers": (
        "q = Pow(x, $1.0) y = Pow(q, $4.0)",
        "s = Mul(x, x) q = Mul(x, s) y = Mul(q, x)",
        "y = Pow(x, $3.0)",
    ),
    "a reciprocal's power": (E + "y = Pow(e, $-1.0)", E + "y = Reciprocal(e)", E + "y = Sqrt(e)"),
    "another power": (
        E + "y = Pow(e, $1.5)",
        E + "k = Mul($3.0, $0.5) y = Pow(e, k)",
        E + "y = Pow(e, $2.5)",
    ),
    "products of integers": (
        INTEGERS + "p = Mul(i, %3) y = Cast<to=11>(p)",
        INTEGERS + "three = Add(%1, %2) p = Mul(i, three) y = Cast<to=11>(p)",
        INTEGERS + "p = Mul(i, %2) y = Cast<to=11>(p)",
        INTEGERS + "p = Add(i, %3) y = Cast<to=11>(p)",
    ),
    "sums of integers": (
        INTEGERS + "p = Add(i, %3) q = Sub(p, i) s = Add(q, i) y = Cast<to=11>(s)",
        INTEGERS + "three = Add(%1, %2) p = Add(i, three) q = Sub(p, i) s = Add(i, q)"
        " y = Cast<to=11>(s)",
        INTEGERS + "p = Add(i, %2) q = Sub(p, i) s = Add(q, i) y = Cast<to=11>(s)",
    ),
    "quotients of integers": (
        INTEGERS + "p = Div(i, %2) y = Cast<to=11>(p)",
        INTEGERS + "two = Add(%1, %1) p = Div(i, two) y = Cast<to=11>(p)",
        "h = Mul(x, $2.0) y = Floor(h)",
        INTEGERS + "p = Div(i, %3) y = Cast<to=11>(p)",
    ),
    "comparisons": (
        "t = Greater(x, $0.5) y = Where(t, x, $1.5)",
        "h = Mul($1.0, $0.5) t = Greater(x, h) y = Where(t, x, $1.5)",
        "t = Less(x, $0.5) y = Where(t, x, $1.5)",
        "t = Greater(x, $0.25) y = Where(t, x, $1.5)",
        "t = Greater(x, $0.5) y = Where(t, x, $2.5)",
    ),
    "a 1x1 convolution that moves": (
        "y = Conv<strides=[2, 2]>(x, moves)",
        "s = Slice(x, %[0, 0], %[8, 8], %[2, 3], %[2, 2]) y = Pad(s, %[1, 1], $0.0, %[1])",
        "s = Slice(x, %[0, 0], %[8, 8], %[2, 3], %[2, 2]) y = Pad(s, %[0, 2], $0.0, %[1])",
        "s = Slice(x, %[1, 0], %[8, 8], %[2, 3], %[2, 2]) y = Pad(s, %[1, 1], $0.0, %[1])",
        "y = Conv<strides=[2, 2]>(x, moves, bias6)",
        "y = Conv<strides=[2, 2]>(x, swaps)",
    ),
    "a transposed convolution": (
        "y = ConvTranspose<strides=[2, 2], output_padding=[1, 0], pads=[1, 1, 1, 1]>(x, wt)",
        (
            "y = ConvTranspose<strides=[2, 2], output_padding=[1, 0], pads=[1, 1, 1, 1], group=1,"
            " kernel_shape=[3, 3], dilations=[1, 1]>(x, wt)"
        ),
        "y = ConvTranspose<strides=[2, 2], output_padding=[1, 0], pads=[0, 1, 2, 1]>(x, wt)",
        "y = ConvTranspose<strides=[2, 2], output_padding=[0, 1], pads=[1, 1, 1, 1]>(x, wt)",
    ),
    "a gemm without a bias": (
        ROWS + "y = Gemm<alpha=2.0>(r, m8)",
        ROWS + "y = MatMul(r, m8x2)",
        ROWS + "y = Gemm(r, m8)",
    ),
    "a gemm of values": (
        ROWS + "a = Abs(r) u = Transpose(a) q = MatMul(a, u)"
        " y = Gemm<alpha=0.5, beta=2.0, transB=1>(r, a, q)",
        ROWS + "a = Abs(r) u = Transpose(a) q = MatMul(a, u) h = MatMul(r, u) s = Mul(h, $0.5)"
        " d = Mul(q, $2.0) y = Add(d, s)",
        ROWS + "a = Abs(r) u = Transpose(a) q = MatMul(a, u)"
        " y = Gemm<alpha=0.5, transB=1>(r, a, q)",
        ROWS + "a = Abs(r) u = Transpose(a) q = MatMul(a, u) y = Gemm<beta=2.0, transB=1>(r, a, q)",
    ),
    "a gemm of turned values": (
        ROWS + "a = Abs(r) y = Gemm<transA=1, beta=0.5>(r, a, g8)",
        ROWS + "a = Abs(r) t = Transpose(r) q = MatMul(t, a) h = Mul(g8, $0.5) y = Add(q, h)",
        ROWS + "a = Abs(r) y = Gemm<transA=1>(r, a, g8)",
        ROWS + "a = Abs(r) y = Gemm<transA=1, beta=0.5>(a, r, g8)",
    ),
    "a gemm of a turned constant": (
        ROWS + "t = Transpose(r) y = Gemm<transA=1>(m88, t)",
        ROWS + "t = Transpose(r) y = MatMul(m88t, t)",
        ROWS + "t = Transpose(r) y = MatMul(m88, t)",
    ),
    "a matrix for each channel": (
        "y = MatMul(x, m485)",
        "i = Identity(x) y = MatMul(i, m485)",
        "y = MatMul(x, m485r)",
    ),
    "a scale behind a reshape": (
        (
            "h = Mul(x, $0.25) r = Reshape(h, %[0, 4, 4, 16]) t = Transpose<perm=[0, 1, 3, 2]>(r)"
            " y = MatMul(r, t)"
        ),
        (
            "r = Reshape(x, %[0, 4, 4, 16]) t = Transpose<perm=[0, 1, 3, 2]>(r) s = MatMul(r, t)"
            " y = Mul(s, $0.0625)"
        ),
        (
            "r = Reshape(x, %[0, 4, 4, 16]) t = Transpose<perm=[0, 1, 3, 2]>(r) s = MatMul(r, t)"
            " y = Mul(s, $0.25)"
        ),
    ),
    "group normalization's parts": (
        GROUPS + "y = Add(z, h)",
        (
            "r = Reshape(x, %[0, 2, -1]) i = InstanceNormalization(r, ones2, zeros2)"
            " n = Reshape(i, %[0, 4, 8, 8]) g = Reshape(gamma, %[4, 1, 1])"
            " h = Reshape(beta, %[4, 1, 1]) z = Mul(n, g) y = Add(z, h)"
        ),
        GROUPS.replace("%[0, 2, -1]", "%[0, 4, -1]") + "y = Add(z, h)",
    ),
    "local response": (
        "y = LRN<size=3>(x)",
        "y = LRN<size=3, alpha=0.0001, beta=0.75, bias=1.0>(x)",
        "y = LRN<size=5>(x)",
        "y = LRN<size=3, alpha=0.5>(x)",
        "y = LRN<size=3, bias=2.0>(x)",
        "y = LRN<size=3, beta=0.5, bias=2.0>(x)",
    ),
}
for _name, _value in {
    "halves": np.full((4, 1, 1), 0.5),
    "m82": RNG.normal(size=(8, 2)),
    "m88": RNG.normal(size=(8, 8)),
    "m485": RNG.normal(size=(4, 8, 5)),
    "c2": RNG.normal(size=2),
    "w77": RNG.normal(size=(6, 4, 7, 7)),
    "wt": RNG.normal(size=(4, 3, 3, 3)),
    "moves": np.eye(6, 4, k=-1).reshape(6, 4, 1, 1),
    "swaps": np.eye(6, 4, k=-1)[[0, 2, 1, 3, 4, 5]].reshape(6, 4, 1, 1),
    "ones2": np.ones(2),
    "zeros2": np.zeros(2),
    "row256": RNG.normal(size=256),
    "nought": np.zeros((1, 1, 1)),
    "yes": np.ones((1, 256), bool),
}.items():
    WEIGHTS[_name] = _value
WEIGHTS |= {"c2r": WEIGHTS["c2"][::-1].copy(), "m485r": WEIGHTS["m485"][::-1].copy()}
WEIGHTS["m88t"] = WEIGHTS["m88"].T


def case(body, **settings):
    return network(body, WEIGHTS, inputs="double[N, 4, 8, 8] x", **settings)


@pytest.mark.parametrize(
    ("first", "second", "others"), [(a, b, c) for a, b, *c in CASES.values()], ids=CASES
)
def test_two_ways_are_one_network_and_a_near_one_is_another(first, second, others):
    check_rule(case(first), case(second), list(map(case, others)))
