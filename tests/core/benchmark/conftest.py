from tests.core.benchmark.stand_in import stand_in as stand_in
