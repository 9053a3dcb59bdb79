// The assignment of the CUDA kernel, run by threads of the CPU: a function for ctypes.
#include "../../mask2former/ops/csrc/cuda/assignment.cuh"

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

using namespace mask2former;

// What the threads of a team share.
struct Meeting {
  explicit Meeting(int lanes) : lanes(lanes), given(lanes) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    const int round = rounds;
    if (++arrived == lanes) {
      arrived = 0;
      ++rounds;
      all_here.notify_all();
    } else {
      all_here.wait(lock, [&] { return rounds != round; });
    }
  }

  int lanes, arrived = 0, rounds = 0;
  std::mutex mutex;
  std::condition_variable all_here;
  std::vector<Nearest> given;
};

struct Threads {
  Meeting& meeting;
  int number;

  int lane() const { return number; }
  int lanes() const { return meeting.lanes; }
  void sync() { meeting.wait(); }
  Nearest nearest(const Nearest& mine) {
    meeting.given[number] = mine;
    meeting.wait();
    Nearest best = meeting.given[0];
    for (const Nearest& other : meeting.given)
      if (other.before(best)) best = other;
    meeting.wait();
    return best;
  }
};

}  // namespace

// Assigns a column to each of the rows of `cost` (rows, columns); there are at least as many columns.
extern "C" void assign_rows(const float* cost, int rows, int columns, int lanes, int* column_of) {
  std::vector<double> memory(Assigning::bytes(rows, columns) / 8 + 1);
  const Assigning state(memory.data(), rows, columns);
  const auto costs = [&](int row, int column) { return finite_cost(cost[row * columns + column]); };
  Meeting meeting(lanes);
  std::vector<std::thread> threads;
  for (int lane = 0; lane < lanes; ++lane)
    threads.emplace_back([&, lane] {
      Threads team{meeting, lane};
      assign(team, costs, rows, columns, state);
    });
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < rows; ++i) column_of[i] = state.column_of[i];
}
