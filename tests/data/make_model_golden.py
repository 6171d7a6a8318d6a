"""Makes tests/data/models/: a model saved by the real Keras 3 and what it computes on a small scan.

KERAS_BACKEND=jax python tests/data/make_model_golden.py      # needs keras, jax, h5py, which are no dependency
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "models"


def main() -> None:
    """Two Conv3D layers with all that may stand between them, for volumes of one channel."""
    import keras

    rng = np.random.default_rng(20260102)
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((9, 10, 8, 1)),
            keras.layers.Conv3D(
                4, (3, 2, 3), strides=(1, 2, 1), padding="same", activation="relu", name="edges"
            ),
            keras.layers.Dropout(0.5),
            keras.layers.Conv3D(
                4, 3, groups=2, dilation_rate=(2, 1, 1), kernel_regularizer="l2", name="mix"
            ),
            keras.layers.LeakyReLU(negative_slope=0.1),
            keras.layers.Softmax(),
        ],
        name="small",
    )
    for weight in model.weights:
        weight.assign(rng.standard_normal(weight.shape) / 3)
    x = rng.standard_normal((1, 9, 10, 8, 1)).astype(np.float32)
    y = np.asarray(model(x, training=False))
    FOLDER.mkdir(exist_ok=True)
    model.save(FOLDER / "small.keras")
    (FOLDER / "small.json").write_text(model.to_json())
    np.savez(FOLDER / "small.npz", x=x, y=y, losses=[float(loss) for loss in model.losses])


if __name__ == "__main__":
    main()
