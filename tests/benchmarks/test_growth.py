import sqlalchemy as sa

from benchmarks import growth
from models_registry.persistence import database, tables
from tests.databases import POSTGRES_ONLY

JOBS = growth.RARE + 203
POINTS_EACH = 5


@POSTGRES_ONLY
class TestGrowth:
    def test_fills_and_reads_what_it_says(self, sessions: database.Sessions) -> None:
        filled = growth._begin(sessions)
        with sessions() as session:
            few = session.scalars(sa.select(sa.func.count()).select_from(tables.JobRow)).one()
        growth._fill(sessions, filled, growth.FEW, JOBS, POINTS_EACH)

        row, point = tables.JobRow, tables.MetricRow
        with sessions() as session:
            count = session.scalars(sa.select(sa.func.count()).select_from(row)).one()
            of_newest = sa.select(sa.func.count()).where(point.job_id == f"job_{JOBS - 1:026x}")
            assert count == few + JOBS - growth.FEW
            assert session.scalars(of_newest).one() == POINTS_EACH
            found = {name: read(session) for name, read in growth._reads(sessions, filled).items()}
        assert found["list 100"] == 100
        assert found["list 100 of a rare method"] == 1
        assert found["list 100 of a rare name"] == 1
        assert found["list 100 with a rare label"] == 1
        assert found["list 100 of a study"] == 6
        assert found["points of one job"] == 50
        assert growth._write(sessions, filled, 1000)["clock"] > 0
