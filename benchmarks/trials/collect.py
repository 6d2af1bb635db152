import sys, time, torch as th
th.set_num_threads(1)
from benchmarks.models import make_model, make_task
task, steps = sys.argv[1], int(sys.argv[2])
env=make_task(task,2)
m=make_model("PMPO",task,env,0,{"buffer_size":60000})
t=time.time()
m.learn(steps)
m.save(f"/tmp/t/{task}.zip"); m.save_replay_buffer(f"/tmp/t/{task}.pkl")
print(task, "done", time.time()-t, [round(float(e['r'])) for e in list(m.ep_info_buffer)[-6:]])
