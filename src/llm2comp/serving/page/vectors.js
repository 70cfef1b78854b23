// Arithmetic with embeddings. Nothing here knows of the page.

/** Return the float32 vector that the server wrote in base64 (little endian), scaled to length 1. */
export function unitVector(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const vector = Float64Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
  const length = Math.sqrt(dot(vector, vector));
  return length > 0 ? vector.map((value) => value / length) : vector;
}

export function dot(first, second) {
  let sum = 0;
  for (let i = 0; i < first.length; i++) sum += first[i] * second[i];
  return sum;
}

/** Return the dot products of all pairs of vectors, as rows. */
export function products(vectors) {
  const rows = vectors.map(() => new Float64Array(vectors.length));
  for (let i = 0; i < vectors.length; i++) {
    for (let j = 0; j <= i; j++) rows[i][j] = rows[j][i] = dot(vectors[i], vectors[j]);
  }
  return rows;
}

/**
 * Return where a principal component analysis puts texts, and the share of the variance per axis.
 *
 * The principal components of n vectors are the eigenvectors of the n x n matrix of the dot
 * products of the centred vectors, so the products that the page has already are enough.
 */
export function principalAxes(rows, count = 2) {
  const matrix = centred(rows);
  const total = matrix.reduce((sum, row, i) => sum + row[i], 0);
  const axes = [];
  for (let number = 0; number < count; number++) {
    const { value, vector } = topEigenvector(matrix);
    const size = Math.max(value, 0);
    axes.push({ places: vector.map((one) => one * Math.sqrt(size)), share: total > 1e-12 ? size / total : 0 });
    for (let i = 0; i < matrix.length; i++) {
      for (let j = 0; j < matrix.length; j++) matrix[i][j] -= value * vector[i] * vector[j];
    }
  }
  return axes;
}

/** Return the dot products after the mean vector is subtracted from every vector. */
function centred(rows) {
  const means = rows.map((row) => row.reduce((sum, value) => sum + value, 0) / row.length);
  const mean = means.reduce((sum, value) => sum + value, 0) / means.length;
  return rows.map((row, i) => row.map((value, j) => value - means[i] - means[j] + mean));
}

/** Return the largest eigenvalue and its eigenvector, by repeated multiplication. */
function topEigenvector(matrix) {
  let vector = normalised(Float64Array.from(matrix, (_, i) => Math.sin(i + 1)));
  let value = 0;
  for (let step = 0; step < 500; step++) {
    const next = Float64Array.from(matrix, (row) => dot(row, vector));
    const size = Math.sqrt(dot(next, next));
    if (size < 1e-12) return { value: 0, vector };
    const turned = next.map((one) => one / size);
    const done = Math.abs(dot(turned, vector)) > 1 - 1e-12;
    value = size;
    vector = turned;
    if (done) break;
  }
  return { value, vector };
}

function normalised(vector) {
  const size = Math.sqrt(dot(vector, vector));
  return vector.map((value) => value / size);
}
