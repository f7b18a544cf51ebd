// Stand-ins for cuBLAS and cuRAND, as far as candle calls them: products in float32, one sum after the other.
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int F32 = 0, F16 = 2, BF16 = 14;  // cudaDataType_t

float value(int type, const void* from, long at) {
  if (type == F32) return static_cast<const float*>(from)[at];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(from)[at];
  float found;
  if (type == F16) {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof bits);
    return static_cast<float>(half);
  }
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  std::memcpy(&found, &wide, sizeof wide);
  return found;
}

void put(int type, void* to, long at, float value) {
  if (type == F32) {
    static_cast<float*>(to)[at] = value;
    return;
  }
  std::uint16_t bits;
  if (type == F16) {
    const _Float16 half = static_cast<_Float16>(value);
    std::memcpy(&bits, &half, sizeof bits);
  } else {
    std::uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    bits = static_cast<std::uint16_t>((wide + 0x7fffu + (wide >> 16 & 1u)) >> 16);
  }
  static_cast<std::uint16_t*>(to)[at] = bits;
}

}  // namespace

extern "C" {

int cublasCreate_v2(void** handle) { return *handle = std::malloc(1), 0; }
int cublasDestroy_v2(void* handle) { return std::free(handle), 0; }
int cublasSetStream_v2(void*, void*) { return 0; }
int cublasDgemmStridedBatched() { return 15; }  // CUBLAS_STATUS_NOT_SUPPORTED

// C = A · B, column-major; alpha is one and beta zero, as candle has them.
int cublasGemmStridedBatchedEx(void*, int transpose_a, int transpose_b, int m, int n, int k, const void*, const void* a,
                               int a_type, int lda, long long a_stride, const void* b, int b_type, int ldb,
                               long long b_stride, const void*, void* c, int c_type, int ldc, long long c_stride,
                               int batches, int, int) {
  if (a_type != b_type || b_type != c_type || (a_type != F32 && a_type != F16 && a_type != BF16)) return 15;
  for (long long batch = 0; batch < batches; ++batch) {
    for (long column = 0; column < n; ++column) {
      for (long row = 0; row < m; ++row) {
        float sum = 0;
        for (long inner = 0; inner < k; ++inner) {
          const long long at_a = batch * a_stride + (transpose_a ? row * lda + inner : inner * lda + row);
          const long long at_b = batch * b_stride + (transpose_b ? inner * ldb + column : column * ldb + inner);
          sum += value(a_type, a, at_a) * value(b_type, b, at_b);
        }
        put(c_type, c, batch * c_stride + column * ldc + row, sum);
      }
    }
  }
  return 0;
}

int curandCreateGenerator(void** generator, int) { return *generator = std::malloc(1), 0; }
int curandDestroyGenerator(void* generator) { return std::free(generator), 0; }
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }
int curandSetStream(void*, void*) { return 0; }

}  // extern "C"
