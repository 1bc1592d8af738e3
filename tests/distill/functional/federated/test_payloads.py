from tests.distill.golden import FEDERATED
from workers.distill.functional.federated import payloads


class TestPapersFigures:
    def test_bits_of_the_fd_paper_equal_the_guide(self) -> None:
        expected = FEDERATED.expected("communication_bits_fd_paper")
        table = payloads.label_table_bytes(rows=10, classes=10)
        weights = payloads.weight_bytes(1_199_648)
        faug = payloads.weight_bytes(1_493_520) + payloads.seed_bytes(15, (1, 28, 28))
        fd, fl = 8 * 16 * 2 * table, 8 * 16 * 2 * weights
        assert fd == expected["fd_16_rounds"]
        assert fl == expected["fl_16_rounds"]
        assert fd + 8 * faug == expected["fd_faug"]
        assert fl + 8 * faug == expected["fl_faug"]
        assert round(fl / (fd + 8 * faug), 6) == expected["ratio_fl_over_fd_faug"]

    def test_bytes_of_the_digits_equal_the_guide(self) -> None:
        expected = FEDERATED.expected("communication_bytes_digits")
        weights = payloads.weight_bytes(6570)
        predictions = payloads.prediction_bytes(samples=300, classes=10)
        assert weights == expected["fedavg_up_per_client"] == expected["fedavg_down_per_client"]
        up = payloads.label_table_bytes(rows=10, classes=10, counts=10)
        assert up == expected["fd_up_per_client"]
        down = payloads.label_table_bytes(rows=10, classes=10)
        assert down == expected["fd_down_per_client"]
        assert predictions == expected["dsfl_up_per_client"] == expected["dsfl_down_per_client"]
        with_indices = payloads.prediction_bytes(samples=300, classes=10, indices=True)
        assert with_indices == predictions + 1200
