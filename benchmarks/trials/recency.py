import sys, time, json, numpy as np, torch as th
th.set_num_threads(1)
from benchmarks.models import make_model, make_task, run_episodes
task, power, seed, args = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
env=make_task(task,2); ev=make_task(task,2)
m=make_model("PMPO",task,env,seed,{"buffer_size":60000,**args})
b=m.replay_buffer
def sample(batch_size, env=None):
    n=b.buffer_size if b.full else b.pos
    inds=(b.pos-1-(n*np.random.rand(batch_size)**power).astype(int))%b.buffer_size
    return b._get_samples(inds, env=env)
if power!=1: b.sample=sample
t=time.time(); spent=0
for k in range(10):
    s=time.time(); m.learn(2500,reset_num_timesteps=k==0,log_interval=None); spent+=time.time()-s
    mm={n:float(v)/m._metrics._counts[n] for n,v in m._metrics._sums.items() if n in("q_value","q_gap","std_mean","action_saturation")}; m._metrics.pop()
    r=run_episodes(m,ev,range(900,905)); print(task,(k+1)*5000,round(np.mean(r),1),round(spent), {a:round(x,2) for a,x in mm.items()},flush=True)
