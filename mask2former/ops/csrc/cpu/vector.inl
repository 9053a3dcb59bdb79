// Vectors of the width of the instruction set, by the vector extensions of GCC and Clang. Included by kernel.inl only.

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <class T>
using Integer = typename IntegerOf<T>::type;

template <class T, int kLanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <class T, int kLanes>
using Vector = typename VectorOf<T, kLanes>::type;

template <class T>
constexpr int kWidth = MASK2FORMER_VECTOR_BYTES / sizeof(T);  // lanes of a full register

#define MASK2FORMER_INLINE inline __attribute__((always_inline))

// MASK2FORMER_SHUFFLE(a, b, i, j, ..): elements i, j, .. of a followed by b.
#if defined(__clang__) || __GNUC__ >= 12
#define MASK2FORMER_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MASK2FORMER_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a < b){__VA_ARGS__})
#endif

template <class V, class T>
MASK2FORMER_INLINE V load(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <class V, class T>
MASK2FORMER_INLINE void store(T* to, const V& v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

template <class V>
MASK2FORMER_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}

template <class V>
MASK2FORMER_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}

// Elements 0, 2, 4.. and 1, 3, 5.. of a followed by b.
template <int kLanes, class V>
MASK2FORMER_INLINE void split_pairs(V a, V b, V& even, V& odd) {
  if constexpr (kLanes == 2) {
    even = MASK2FORMER_SHUFFLE(a, b, 0, 2);
    odd = MASK2FORMER_SHUFFLE(a, b, 1, 3);
  } else if constexpr (kLanes == 4) {
    even = MASK2FORMER_SHUFFLE(a, b, 0, 2, 4, 6);
    odd = MASK2FORMER_SHUFFLE(a, b, 1, 3, 5, 7);
  } else if constexpr (kLanes == 8) {
    even = MASK2FORMER_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
    odd = MASK2FORMER_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  } else {
    static_assert(kLanes == 16, "a register holds 2, 4, 8 or 16 numbers");
    even = MASK2FORMER_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    odd = MASK2FORMER_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  }
}

// As split_pairs, but within every group of four: one cheap instruction on x86.
template <int kLanes, class V>
MASK2FORMER_INLINE V add_neighbors(V a, V b) {
  if constexpr (kLanes == 4) {
    return MASK2FORMER_SHUFFLE(a, b, 0, 2, 4, 6) + MASK2FORMER_SHUFFLE(a, b, 1, 3, 5, 7);
  } else if constexpr (kLanes == 8) {
    return MASK2FORMER_SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
           MASK2FORMER_SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  } else {
    static_assert(kLanes == 16, "groups of four");
    return MASK2FORMER_SHUFFLE(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
           MASK2FORMER_SHUFFLE(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
  }
}

template <class T, int kLanes>
MASK2FORMER_INLINE Vector<T, kLanes / 2> low_half(const Vector<T, kLanes>& v) {
  Vector<T, kLanes / 2> half;
  __builtin_memcpy(&half, &v, sizeof(half));
  return half;
}

template <class T, int kLanes>
MASK2FORMER_INLINE Vector<T, kLanes / 2> high_half(const Vector<T, kLanes>& v) {
  Vector<T, kLanes / 2> half;
  __builtin_memcpy(&half, reinterpret_cast<const char*>(&v) + sizeof(half), sizeof(half));
  return half;
}

template <class T, int kLanes>
MASK2FORMER_INLINE T sum(const Vector<T, kLanes>& v) {
  if constexpr (kLanes == 1) {
    return v[0];
  } else {
    return sum<T, kLanes / 2>(low_half<T, kLanes>(v) + high_half<T, kLanes>(v));
  }
}

template <class T, int kLanes>
MASK2FORMER_INLINE T maximum(const Vector<T, kLanes>& v) {
  if constexpr (kLanes == 1) {
    return v[0];
  } else {
    return maximum<T, kLanes / 2>(larger(low_half<T, kLanes>(v), high_half<T, kLanes>(v)));
  }
}

// to[0..3] += the sums of four vectors.
template <class T, int kLanes>
MASK2FORMER_INLINE void add_sums(const Vector<T, kLanes>* v, T* to) {
  if constexpr (sizeof(T) == 4 && kLanes >= 4) {
    using V = Vector<T, kLanes>;
    const V all = add_neighbors<kLanes>(add_neighbors<kLanes>(v[0], v[1]), add_neighbors<kLanes>(v[2], v[3]));
    if constexpr (kLanes == 4) {
      store(to, load<V>(to) + all);
    } else {
      auto half = low_half<T, kLanes>(all) + high_half<T, kLanes>(all);
      if constexpr (kLanes == 8) {
        store(to, load<decltype(half)>(to) + half);
      } else {
        auto quarter = low_half<T, kLanes / 2>(half) + high_half<T, kLanes / 2>(half);
        store(to, load<decltype(quarter)>(to) + quarter);
      }
    }
  } else {
    for (int i = 0; i < 4; ++i) to[i] += sum<T, kLanes>(v[i]);
  }
}

// e^x for x <= 0, to the precision of T. x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series, 2^n by the bits
// of the exponent. Below the normal numbers the result is 0. NaN stays NaN.
template <class T, class V, class I>
MASK2FORMER_INLINE V exponential(V x) {
  constexpr bool kFloat = sizeof(T) == 4;
  constexpr T kLowest = kFloat ? T(-87) : T(-708);
  // ln 2 in two parts; the first has so few bits that its product with n is exact.
  constexpr T kLn2High = kFloat ? T(0.693359375) : T(0.693147182464599609375);
  constexpr T kLn2Low = kFloat ? T(-2.12194440054690583e-4) : T(-1.904654299957767878e-9);
  constexpr int kTerms = kFloat ? 7 : 13;
  constexpr T kInverseFactorial[] = {
      T(1.),        T(1.),          T(1. / 2),        T(1. / 6),         T(1. / 24),
      T(1. / 120),  T(1. / 720),    T(1. / 5040),     T(1. / 40320),     T(1. / 362880),
      T(1. / 3628800), T(1. / 39916800), T(1. / 479001600), T(1. / 6227020800)};
  const V bounded = x < kLowest ? V{} + kLowest : x;
  const I n = __builtin_convertvector(bounded * T(1.44269504088896340736) - T(0.5), I);  // truncation rounds x <= 0
  const V exact = __builtin_convertvector(n, V);
  const V r = (bounded - exact * kLn2High) - exact * kLn2Low;
  V series = V{} + kInverseFactorial[kTerms];
  for (int k = kTerms - 1; k >= 0; --k) series = series * r + kInverseFactorial[k];
  const I bits = (n + (kFloat ? 127 : 1023)) << (kFloat ? 23 : 52);
  V power;
  __builtin_memcpy(&power, &bits, sizeof(V));
  return x < kLowest ? V{} : series * power;
}
