"""TensorFlow's operations as plain functions on torch tensors.

    @op("Conv2D")
    def conv2d(input: Tensor, filter: Tensor, *, strides: Ints, padding: str, data_format: str = "NHWC", ...) -> Tensor:

- Positional parameters are the inputs, with the names that TensorFlow's declaration of the operation gives them.
- Keyword-only parameters are the attributes that change the result, with TensorFlow's names and defaults. An attribute
  that only repeats the type of an input (`T`), or that is about speed (`use_cudnn_on_gpu`), is not a parameter.
- Annotations say what an input is, see `values`: a tensor, a list of tensors, an array of strings, or Python integers.
  `shape: Ints` means that the caller passes Python integers, never a tensor.
- Results have TensorFlow's values, dtypes and shapes. Gradients are those of autograd, and equal TensorFlow's.
- The logical layout of images is the one that the attributes say, NHWC by default.

A function does not know graphs, nodes or files, and never changes its inputs. Bad input raises InvalidArgumentError
or a RuntimeError or ValueError of torch; the caller adds the name of the node. No memory is allocated in proportion to
a number among the inputs before `limits.check_size` has approved it.

    values        the kinds of inputs and results
    registry      name of an operation -> function; `register_op`
    limits        the largest result; checks of shapes and indices
    integers, integer_arithmetic, integer_arrays    arithmetic on shapes, in Python integers
    strided       the masks of StridedSlice
    axes          axes of tensors and of Python integers
    unsigned      arithmetic on uint16, uint32, uint64
    arithmetic    operations on pairs of elements
    elementwise   functions of each element
    activations   activation functions and their derivatives
    comparing     comparisons, logic, choice
    reductions    reductions over axes, cumulative sums, counts
    sliding       windows of convolutions and pools
    convolutions  Conv2D, Conv3D, depthwise and transposed convolutions, BiasAdd
    pooling       MaxPool, AvgPool, Dilation2D
    normalization FusedBatchNorm, LRN, Softmax
    moves         operations that only move elements, for arrays of strings
    shapes        shapes, and other shapes for the same elements
    slicing       slices, splits, gathers
    joining       concatenations and paddings
    arrays        sequences of numbers, one-hot vectors, largest elements, unique elements
    quantized     FakeQuantWithMinMax...
    images        other sizes, crops, patches, colours
    blocks        SpaceToBatchND, SpaceToDepth, and back
    detection     NonMaxSuppression
    lists         TensorArray and TensorList
    matrix        products, inverses and factors of matrices, Einsum
    diagonals     diagonals and bands of matrices
    lookup        tables of keys and values
    losses        cross entropies
    complex_numbers    parts of complex numbers, Fourier transforms
    passing       identities, checks, boundaries of gradients
    casts         conversions between dtypes
    bits          operations on the bits of integers
    reordering    Roll, ReverseSequence
    cells         BlockLSTM, LSTMBlockCell, GRUBlockCell
    scatter       rows written to given places, rows sorted into several tensors
    segments      reductions over rows with the same number
    sparse        sparse tensors
    buckets       numbers of buckets for numbers
    examples      tf.train.Example
    hashing       numbers of buckets for strings
    numbers_as_text    numbers to strings and back
    ragged        ragged tensors
    sets          sets along the last axis
    regular_expressions    RegexReplace, RegexFullMatch
    re2_syntax, pattern_trees, linear_matching    RE2's syntax in Python's re, its choices, and matching in linear time
    strings, text_arrays    arrays of strings
    unicode       strings from and to the numbers of their characters
    random        random numbers of torch
    stateless_random    random numbers that follow from a seed
    fused         convolutions with bias, normalisation and activation in one step

May use: torch, numpy, format. May not: import graphs, files or savers.
"""

# Importing a module registers its operations.
from torch_tfckpt.graph_ops import activations as activations
from torch_tfckpt.graph_ops import arithmetic as arithmetic
from torch_tfckpt.graph_ops import arrays as arrays
from torch_tfckpt.graph_ops import bits as bits
from torch_tfckpt.graph_ops import blocks as blocks
from torch_tfckpt.graph_ops import buckets as buckets
from torch_tfckpt.graph_ops import casts as casts
from torch_tfckpt.graph_ops import cells as cells
from torch_tfckpt.graph_ops import comparing as comparing
from torch_tfckpt.graph_ops import complex_numbers as complex_numbers
from torch_tfckpt.graph_ops import convolutions as convolutions
from torch_tfckpt.graph_ops import detection as detection
from torch_tfckpt.graph_ops import diagonals as diagonals
from torch_tfckpt.graph_ops import elementwise as elementwise
from torch_tfckpt.graph_ops import examples as examples
from torch_tfckpt.graph_ops import hashing as hashing
from torch_tfckpt.graph_ops import images as images
from torch_tfckpt.graph_ops import integer_arithmetic as integer_arithmetic
from torch_tfckpt.graph_ops import integer_arrays as integer_arrays
from torch_tfckpt.graph_ops import joining as joining
from torch_tfckpt.graph_ops import lists as lists
from torch_tfckpt.graph_ops import lookup as lookup
from torch_tfckpt.graph_ops import losses as losses
from torch_tfckpt.graph_ops import matrix as matrix
from torch_tfckpt.graph_ops import normalization as normalization
from torch_tfckpt.graph_ops import numbers_as_text as numbers_as_text
from torch_tfckpt.graph_ops import passing as passing
from torch_tfckpt.graph_ops import pooling as pooling
from torch_tfckpt.graph_ops import quantized as quantized
from torch_tfckpt.graph_ops import ragged as ragged
from torch_tfckpt.graph_ops import random as random
from torch_tfckpt.graph_ops import reductions as reductions
from torch_tfckpt.graph_ops import regular_expressions as regular_expressions
from torch_tfckpt.graph_ops import reordering as reordering
from torch_tfckpt.graph_ops import scatter as scatter
from torch_tfckpt.graph_ops import segments as segments
from torch_tfckpt.graph_ops import sets as sets
from torch_tfckpt.graph_ops import shapes as shapes
from torch_tfckpt.graph_ops import slicing as slicing
from torch_tfckpt.graph_ops import sparse as sparse
from torch_tfckpt.graph_ops import stateless_random as stateless_random
from torch_tfckpt.graph_ops import strings as strings
from torch_tfckpt.graph_ops import unicode as unicode
