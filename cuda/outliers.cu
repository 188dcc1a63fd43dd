// Which columns of activations are outliers, without asking the host: flags, and of these a list for outlier_products.cu.
#include "row.cuh"

// Flag the columns in which some |x| of a row without NaN or infinity is at least `threshold`; a block a row. Blocks write
// nothing but ones, so their order does not matter.
KERNEL(mark_outliers, ROW_THREADS)(const void* x, int dtype, float threshold, u8* flags, int k) {
    DYNAMIC_SHARED(shared);
    const i64 start = (i64)block_x() * k;
    const u32 least = bits_of_float(threshold);
    const u32 most = largest_magnitude(shared, k, [&](int i) { return load_real(x, start + i, dtype); });
    if (most < least || most >= INFINITE) return;
    for (int i = thread_index(); i < k; i += ROW_THREADS)
        if (magnitude(load_real(x, start + i, dtype)) >= least) flags[i] = 1;
}

// The flagged columns, ascending, and how many. One block; each thread has a stretch of k.
KERNEL(list_outliers, ROW_THREADS)(const u8* flags, int* columns, int* count, int k) {
    DYNAMIC_SHARED(shared);
    int* of_thread = (int*)shared;
    const int thread = thread_index(), stretch = (k + ROW_THREADS - 1) / ROW_THREADS;
    const int first = smaller(thread * stretch, k), end = smaller(first + stretch, k);
    int mine = 0;
    for (int i = first; i < end; i++) mine += flags[i] != 0;
    of_thread[thread] = mine;
    sync_block();
    int at = 0;
    for (int other = 0; other < thread; other++) at += of_thread[other];
    if (thread == ROW_THREADS - 1) *count = at + mine;
    for (int i = first; i < end; i++)
        if (flags[i]) columns[at++] = i;
}
