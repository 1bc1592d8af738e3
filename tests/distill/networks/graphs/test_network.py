"""A graph is read, tried and refused by name; it shows what its network would."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tests.distill import graphs
from workers.distill import errors
from workers.distill.methods import traits
from workers.distill.networks import catalog, class_order
from workers.distill.networks.graphs import onnx_file
from workers.distill.networks.graphs.network import OnnxNetwork
from workers.distill.networks.interface import Network


def native(seed: int = 1) -> Network:
    torch.manual_seed(seed)
    arguments = {"widths": [6, 5]}
    return catalog.build(
        "retort/mlp", classes=3, channels=1, height=8, width=8, arguments=arguments
    ).eval()


def unread(**arguments: Any) -> OnnxNetwork:
    built = catalog.build(
        "retort/onnx", classes=3, channels=1, height=8, width=8, arguments=arguments
    )
    assert isinstance(built, OnnxNetwork)
    return built


def loaded(made: Any, folder: Path, **arguments: Any) -> OnnxNetwork:
    network = unread(**arguments)
    network.load_file(graphs.save(made, folder / "mine.onnx"))
    return network.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))


class TestAnswers:
    def test_are_those_of_the_network_by_both_runtimes(
        self, tmp_path: Path, images: torch.Tensor
    ) -> None:
        expected = native().observe(images)
        network = loaded(graphs.of_mlp(native()), tmp_path, output="logits", embedding="pooled")
        by_runtime = network.observe(images)
        torch.testing.assert_close(by_runtime.logits, expected.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(by_runtime.pooled, expected.pooled, atol=1e-5, rtol=1e-5)
        network.enable_features(("classifier",))
        in_torch = network.observe(images)
        assert in_torch.logits.data_ptr() != by_runtime.logits.data_ptr()
        torch.testing.assert_close(in_torch.logits, expected.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(in_torch.pooled, expected.pooled, atol=1e-5, rtol=1e-5)
        classifier = network.pooled_classifier()
        assert classifier is not None
        torch.testing.assert_close(classifier.weight, native().fc.weight)  # type: ignore[union-attr]  # an MLP

    def test_have_gradients_where_they_are_asked_for(
        self, tmp_path: Path, images: torch.Tensor
    ) -> None:
        network = loaded(graphs.of_mlp(native()), tmp_path, output="logits")
        network.enable_gradients()
        images.requires_grad_()
        network(images).sum().backward()
        own = images.grad
        expected = images.detach().clone().requires_grad_()
        native()(expected).sum().backward()
        assert own is not None
        torch.testing.assert_close(own, expected.grad, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("wants", [(), ("classifier",)])
    def test_come_in_the_order_of_the_classes(
        self, tmp_path: Path, images: torch.Tensor, wants: tuple[str, ...]
    ) -> None:
        network = loaded(graphs.of_mlp(native()), tmp_path, output="logits")
        network.enable_features(wants)
        before, classifier = network(images), network.pooled_classifier()
        class_order.reorder(network, [2, 0, 1])
        assert torch.equal(network(images), before[:, [2, 0, 1]])
        ordered = network.pooled_classifier()
        assert classifier is not None
        assert ordered is not None
        assert torch.equal(ordered.weight, classifier.weight[[2, 0, 1]])

    def test_of_probabilities_are_their_logarithm_and_that_is_told(
        self, tmp_path: Path, images: torch.Tensor
    ) -> None:
        soft = loaded(graphs.with_softmax(graphs.of_mlp(native())), tmp_path, output="logits")
        expected = torch.log_softmax(native()(images), dim=1)
        torch.testing.assert_close(soft(images), expected, atol=1e-5, rtol=1e-5)
        soft.enable_features(("classifier",))
        torch.testing.assert_close(soft(images), expected, atol=1e-5, rtol=1e-5)
        assert any("holds probabilities" in note for note in soft.notes)
        assert soft.chosen_arguments()["outputs"] == "probabilities"

    def test_of_a_graph_that_takes_two_images_are_put_together(
        self, tmp_path: Path, images: torch.Tensor
    ) -> None:
        fixed = loaded(graphs.of_mlp(native(), image=(2, 1, 8, 8)), tmp_path, output="logits")
        torch.testing.assert_close(fixed(images), native()(images), atol=1e-5, rtol=1e-5)
        assert any("takes 2 images at a time" in note for note in fixed.notes)

    def test_of_a_graph_with_channels_last_are_the_same(
        self, tmp_path: Path, images: torch.Tensor
    ) -> None:
        made = graphs.of_mlp(native(), image=("n", 8, 8, 1))
        made.graph.node[0].input[0] = "moved"
        made.graph.node.insert(
            0, helper.make_node("Transpose", ["images"], ["moved"], perm=[0, 3, 1, 2])
        )
        network = loaded(made, tmp_path, output="logits")
        assert network.chosen_arguments()["layout"] == "nhwc"
        torch.testing.assert_close(network(images), native()(images), atol=1e-5, rtol=1e-5)
        network.enable_features(("classifier",))
        torch.testing.assert_close(network(images), native()(images), atol=1e-5, rtol=1e-5)

    def test_follow_the_threads_of_torch_and_a_copy_shares_the_session(
        self, tmp_path: Path, images: torch.Tensor
    ) -> None:
        network = loaded(graphs.of_mlp(native()), tmp_path, output="logits")
        assert torch.equal(copy.deepcopy(network)(images), network(images))

    def test_one_at_a_time_where_a_batch_cannot_be_run(
        self, tmp_path: Path, images: torch.Tensor
    ) -> None:
        made = graphs.of_mlp(native())
        shape = onnx.numpy_helper.from_array(np.array([1, 64], dtype=np.int64), "shape")
        made.graph.initializer.append(shape)
        made.graph.node[0].CopyFrom(helper.make_node("Reshape", ["images", "shape"], ["flat"]))
        network = loaded(made, tmp_path, output="logits")
        assert network.chosen_arguments()["batch"] == 1
        assert any("run image by image" in note for note in network.notes)
        torch.testing.assert_close(network(images), native()(images), atol=1e-5, rtol=1e-5)


def test_what_is_not_converted_is_told_and_leaves_the_outputs(tmp_path: Path) -> None:
    made = graphs.of_mlp(native())
    made.graph.node[-1].output[0] = "before"
    made.graph.node.append(helper.make_node("Sign", ["before"], ["logits"]))
    network = loaded(made, tmp_path, output="logits", embedding="pooled")
    found = traits.of(network)
    assert found["shows"] == ["embedding"]
    assert not found["gives_gradients"]
    assert "the operator Sign" in found["limits"]
    with pytest.raises(errors.IncompatibleNetworks, match="gives no gradients: its graph"):
        network.enable_gradients()


class TestEmbedding:
    def unread(self, **arguments: Any) -> OnnxNetwork:
        built = catalog.build(
            "retort/onnx", classes=0, channels=1, height=8, width=8, arguments=arguments
        )
        assert isinstance(built, OnnxNetwork)
        return built

    @pytest.mark.parametrize("named", ["output", "embedding"])
    def test_is_the_output_of_a_graph_without_classes(
        self, tmp_path: Path, images: torch.Tensor, named: str
    ) -> None:
        network = self.unread(**{named: "pooled"})
        path = graphs.save(graphs.of_mlp(native()), tmp_path / "mine.onnx")
        assert "nothing but its embedding is read" in network.load_file(path)[-1]
        features = network.observe(images)
        assert torch.allclose(features.pooled, native().observe(images).pooled, atol=1e-5)
        assert torch.equal(network(images), features.pooled)
        assert (network.task, network.pooled_width) == ("embedding", 5)

    def test_is_a_row_for_each_image(self, tmp_path: Path) -> None:
        made = graphs.model([helper.make_node("Relu", ["images"], ["maps"])], outputs=("maps",))
        path = graphs.save(made, tmp_path / "mine.onnx")
        with pytest.raises(
            errors.UploadRefused, match=r"\[1, D\]: name another .*arguments.output"
        ):
            self.unread().load_file(path)


class TestRefusals:
    def refused(self, made: Any, folder: Path, **arguments: Any) -> errors.UploadRefused:
        with pytest.raises(errors.UploadRefused) as caught:
            loaded(made, folder, **arguments)
        return caught.value

    def test_weights_in_other_files(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.onnx"
        onnx.save_model(
            graphs.of_mlp(native()),
            str(path),
            save_as_external_data=True,
            location="mine.data",
            size_threshold=0,
        )
        (tmp_path / "mine.data").unlink()
        with pytest.raises(errors.UploadRefused, match=r"not in the upload: mine\.data\. Export"):
            unread().load_file(path)

    def test_operators_of_their_authors(self, tmp_path: Path) -> None:
        made = graphs.of_mlp(native())
        made.graph.node[-1].domain = "my.company"
        refusal = self.refused(made, tmp_path)
        assert refusal.refusal == "custom_operators"
        assert "my.company::Gemm" in refusal.message

    def test_answers_that_are_not_finite(self, tmp_path: Path) -> None:
        broken = native()
        broken.fc.bias.data[0] = torch.nan  # type: ignore[union-attr, operator]  # an MLP
        refusal = self.refused(graphs.of_mlp(broken), tmp_path, output="logits")
        assert refusal.refusal == "not_finite"

    def test_several_outputs_of_which_none_is_named(self, tmp_path: Path) -> None:
        refusal = self.refused(graphs.of_mlp(native()), tmp_path)
        assert "logits [n, ?], pooled [n, ?]" in refusal.message
        assert "arguments.output" in refusal.message

    def test_an_output_that_does_not_exist(self, tmp_path: Path) -> None:
        refusal = self.refused(graphs.of_mlp(native()), tmp_path, output="scores")
        assert "'scores'" in refusal.message

    def test_other_classes(self, tmp_path: Path) -> None:
        refusal = self.refused(graphs.of_mlp(native()), tmp_path, output="pooled")
        assert refusal.refusal == "class_count"
        assert "[1, 5], expected [1, 3]" in refusal.message

    def test_images_of_another_size(self, tmp_path: Path) -> None:
        refusal = self.refused(graphs.of_mlp(native(), image=("n", 1, 9, 8)), tmp_path)
        assert refusal.refusal in {"input_shape", "several_ports"}
        assert (
            "images [n, 1, 9, 8]"
            in self.refused(
                graphs.of_mlp(native(), image=("n", 1, 9, 8)), tmp_path, output="logits"
            ).message
        )

    def test_an_input_of_words(self, tmp_path: Path) -> None:
        made = graphs.of_mlp(native(), element=TensorProto.INT64)
        made.graph.node[0].input[0] = "cast"
        cast = helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT)
        made.graph.node.insert(0, cast)
        assert self.refused(made, tmp_path, output="logits").refusal == "not_images"

    def test_probabilities_that_are_none(self, tmp_path: Path) -> None:
        refusal = self.refused(
            graphs.of_mlp(native()), tmp_path, output="logits", outputs="probabilities"
        )
        assert "arguments.outputs says probabilities" in refusal.message

    def test_a_file_of_something_else(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.onnx"
        path.write_bytes(b"\x89PNG no graph at all")
        with pytest.raises(errors.UploadRefused, match=r"mine\.onnx is no ONNX"):
            onnx_file.read(path)


def test_a_graph_of_torchs_exporter_shows_what_its_network_shows(images: torch.Tensor) -> None:
    """The file is retort/resnet8 with widths 4, 4, 8, 8, drawn with seed 0.

    It was written by `torch.onnx.export(network.eval(), dynamo=False,
    training=TrainingMode.PRESERVE, do_constant_folding=False, ...)`, which keeps batch norms.
    """
    torch.manual_seed(0)
    sizes = {"classes": 10, "channels": 1, "height": 8, "width": 8}
    own = catalog.build("retort/resnet8", **sizes, arguments={"widths": [4, 4, 8, 8]}).eval()
    graph = catalog.build("retort/onnx", **sizes, arguments={})
    assert isinstance(graph, OnnxNetwork)
    graph.load_file(Path(__file__).with_name("resnet8.onnx"))
    found = traits.of(graph.eval())
    assert found["has_batch_norm"]
    assert set(found["shows"]) == set(traits.of(own)["shows"])
    assert graph.stages_info == own.stages_info
    with torch.no_grad():
        theirs, ours = graph.observe(images), own.observe(images)
    for name in ("logits", "pooled", "final"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), atol=1e-5, rtol=1e-4)
    for one, other in zip(
        (*theirs.stages, *theirs.pre_activations),
        (*ours.stages, *ours.pre_activations),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
