"""The whole job as one would write it without layerlab: Lightning, MLflow, the export, a check of the file.

    python stock_script.py

500 steps of the default problem, the loss of every step in MLflow, an ONNX file whose batch axis is free, and
onnxruntime's answer beside the module's. What Lightning would draw and save on the way is off: a bar, a
summary, and a checkpoint after every epoch, which here is every step. It writes into the working folder.
"""

import numpy as np
import onnxruntime
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import MLFlowLogger
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

N, D_IN, H, D_OUT = 64, 1000, 100, 10
LR = 1e-4
STEPS = 500


class TwoLayerNet(pl.LightningModule):
    """The network, its loss and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(D_IN, H)
        self.linear2 = nn.Linear(H, D_OUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predictions (N, D_OUT) for rows (N, D_IN)."""
        return self.linear2(self.linear1(x).relu())

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """The loss of a batch, recorded."""
        x, y = batch
        loss = functional.mse_loss(self(x), y, reduction="sum")
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=LR)


def main() -> None:
    """Trains, exports, checks."""
    pl.seed_everything(0, verbose=False)
    x, y = torch.randn(N, D_IN), torch.randn(N, D_OUT)
    model = TwoLayerNet()
    logger = MLFlowLogger(experiment_name="stock", tracking_uri="sqlite:///mlflow.db")
    logger.log_hyperparams({"n": N, "d_in": D_IN, "hidden": H, "d_out": D_OUT, "lr": LR, "steps": STEPS})
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=STEPS,
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(x, y), batch_size=N))
    model.eval()
    torch.onnx.export(
        model,
        (x,),
        "model.onnx",
        dynamo=True,
        input_names=["x"],
        output_names=["y_pred"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,  # one file, so that the artifact is the whole model
        verbose=False,
    )
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, N):
        (answer,) = session.run(None, {"x": x[:rows].numpy()})
        with torch.no_grad():
            expected = model(x[:rows]).numpy()
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    logger.experiment.log_artifact(logger.run_id, "model.onnx")
    print(f"loss {float(trainer.callback_metrics['loss']):.4g}, run {logger.run_id}, model.onnx")  # noqa: T201


if __name__ == "__main__":
    main()
